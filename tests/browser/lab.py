"""What a user does in JupyterLab, in words of the panel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers.live import Live

Found = TypeVar("Found")

PATIENCE: Final = 40.0  # seconds
AXE: Final = Path(__file__).parents[2] / "labextension/node_modules/axe-core/axe.min.js"

#: What a page says by itself that is no fault of ours.
_HARMLESS: Final = (
    "favicon",
    "manifest",
    "WebSocket is closed before",
    "Failed to load resource",
    "/wsfuse/feed",
)


class Lab:
    def __init__(self, browser: webdriver.Chrome, server: Live) -> None:
        self.browser = browser
        self.server = server
        self._scripts: list[str] = []

    def open(self) -> None:
        """JupyterLab with the panel shown."""
        self.browser.get(f"{self.server.url}lab?token={self.server.token}&reset")
        self.until(lambda: self.all('[data-id="jp-wsfuse-panel"]'), "JupyterLab shows the panel's tab")
        self.until(lambda: not self.all("#jupyterlab-splash"), "JupyterLab has started")
        if not self.all("#jp-wsfuse-panel:not(.lm-mod-hidden)"):
            self.all('[data-id="jp-wsfuse-panel"]')[0].click()
        self.until(
            lambda: self.all("#jp-wsfuse-panel:not(.lm-mod-hidden) .jp-wsfuse-body"), "the panel opens"
        )

    def leave(self) -> None:
        """Nothing of the page goes on, and it had nothing to complain of."""
        for script in self._scripts:
            self.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})
        severe = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        self.browser.get("about:blank")
        assert not [text for text in severe if not any(word in text for word in _HARMLESS)]

    def before_pages(self, script: str) -> None:
        """Run *script* in every page before its own."""
        made = self.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        self._scripts.append(made["identifier"])

    def until(self, condition: Callable[[], Found], what: str) -> Found:
        def look(_: Any) -> Any:
            try:
                return condition()
            except StaleElementReferenceException:
                return None  # it was drawn anew meanwhile

        return WebDriverWait(self.browser, PATIENCE, 0.05).until(look, f"never: {what}")  # type: ignore[no-any-return]

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    @property
    def text(self) -> str:
        """All that the panel says."""
        return self.all("#jp-wsfuse-panel")[0].text

    def says(self, *words: str) -> None:
        self.until(lambda: all(word in self.text for word in words), f"the panel says {words}")

    def view(self, name: str) -> None:
        self.all(f"#jp-wsfuse-panel [data-view={name}]")[0].click()
        self.until(
            lambda: self.all(f"#jp-wsfuse-panel [data-view={name}][aria-selected=true]"), f"{name} is shown"
        )

    def click(self, label: str, within: str = "#jp-wsfuse-panel") -> None:
        def button() -> bool:
            for found in self.all(f"{within} button"):
                if found.text == label and found.is_enabled():
                    found.click()
                    return True
            return False

        self.until(button, f"a button {label!r}")

    def answer(self, text: str) -> None:
        """Fill in the dialog's one field, and accept it."""
        (field,) = self.until(lambda: self.all(".jp-Dialog input"), "the dialog asks")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.ENTER)

    def mount_at(self, path: Path) -> str:
        """What is said of the mount at *path*; empty if there is none."""
        for item in self.all("#jp-wsfuse-panel li[data-mount]"):
            if item.text.startswith(str(path)):
                return item.text
        return ""

    def theme(self, name: str) -> None:
        """Choose one of JupyterLab's themes, by its own settings."""
        url = f"{self.server.url}lab/api/settings/@jupyterlab/apputils-extension:themes"
        self.browser.execute_async_script(
            """const [url, name, done] = arguments;
            const xsrf = (document.cookie.match(/_xsrf=([^;]+)/) || [])[1] || '';
            fetch(url, {method: 'PUT', headers: {'X-XSRFToken': xsrf},
                        body: JSON.stringify({raw: JSON.stringify({theme: name})})}).then(done, done);""",
            url,
            name,
        )
        self.open()
        self.until(
            lambda: self.all("body")[0].get_attribute("data-jp-theme-name") == name, f"the theme is {name}"
        )

    def faults(self) -> list[str]:
        """Serious faults of the panel for people who do not see it, or use no mouse, as axe finds them."""
        self.browser.execute_script(AXE.read_text())
        found = self.browser.execute_async_script(
            "axe.run('#jp-wsfuse-panel').then(arguments[arguments.length - 1])"
        )
        return [
            f"{fault['id']}: {fault['nodes'][0]['html']}"
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
