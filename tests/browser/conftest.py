"""A real JupyterLab in Debian's Chromium: a server with rules, and a page of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver

from tests.browser.lab import Lab
from tests.helpers import live

CONFIG = """
c.WsFuse.rules = ["deny write,delete /raw/**"]
c.WsFuse.limits = {"delete": 10, "bytes_out": "200 MiB", "handles": 1000}
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "install the packages chromium and chromium-driver: scripts/system-packages.sh test"
    assert driver
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1100,800",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Live]:
    home = tmp_path_factory.mktemp("lab")
    env = live.environment(home / "home")
    (home / "home" / "config" / "jupyter_server_config.py").write_text(CONFIG)
    (home / "workspace" / "raw").mkdir(parents=True)
    (home / "workspace" / "raw" / "measured.csv").write_text("1,2\n")
    with live.start_server(home / "workspace", home / "home", env=env) as running:
        yield running


@pytest.fixture
def lab(browser: webdriver.Chrome, server: live.Live) -> Iterator[Lab]:
    lab = Lab(browser, server)
    lab.open()
    yield lab
    lab.leave()
