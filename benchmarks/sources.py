"""The files that the workloads work on, the same in each run."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

from .workloads import BIG, MIB, RANDOM_SIZE, SMALL_FILES

#: Of the standard library, what is not code that somebody imports.
_LEFT_OUT = shutil.ignore_patterns(
    "test", "tests", "site-packages", "idlelib", "ensurepip", "tkinter", "turtledemo", "lib2to3", "config-*",
    "lib-dynload", "*.so", "__pycache__",
)  # fmt: skip
#: Everything is older than the index of the repository: git then need not look into files.
_OLD = 1_700_000_000


def _text(source: random.Random) -> str:
    words = ("lorem", "ipsum", "dolor", "sit", "amet", "def", "return", "import", "value", "x = 1")
    return "\n".join(" ".join(source.choices(words, k=8)) for _ in range(source.randrange(10, 120))) + "\n"


def _git(*arguments: object, cwd: Path) -> None:
    identity = (
        "-c",
        "user.name=bench",
        "-c",
        "user.email=bench@example.org",
        "-c",
        "init.defaultBranch=main",
    )
    subprocess.run(["git", *identity, *map(str, arguments)], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def tree(top: Path) -> None:
    """1,100 files in 110 directories."""
    source = random.Random(1)
    for folder in range(11):
        for inner in range(10):
            path = top / f"package{folder}" / f"part{inner}"
            path.mkdir(parents=True)
            for number in range(10):
                file = path / f"module{number}.py"
                file.write_text(_text(source))
                os.utime(file, (_OLD, _OLD))


def prepare(workspace: Path, beside: Path) -> dict[str, str]:
    """Fill *workspace*, and *beside* it what is not read through a mount. Returns the environment of workloads."""
    source = random.Random(2)
    repository = workspace / "tree"
    tree(repository / "src")
    _git("init", "-q", ".", cwd=repository)
    # The same for every peer: inode numbers and change times of a mount are not those of the disk.
    _git("config", "core.checkStat", "minimal", cwd=repository)
    _git("config", "core.trustctime", "false", cwd=repository)
    _git("add", "-A", cwd=repository)
    _git("commit", "-q", "-m", "all of it", cwd=repository)
    _git("clone", "-q", "--bare", repository, workspace.parent / "repository.git", cwd=beside)
    (workspace / "small").mkdir()
    for number in range(SMALL_FILES):
        (workspace / "small" / f"file{number:04}.txt").write_bytes(
            source.randbytes(source.randrange(1000, 8000))
        )
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    shutil.copytree(stdlib, workspace / "stdlib", ignore=_LEFT_OUT, symlinks=True)
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-f", workspace / "stdlib"],
        check=False,
        stderr=subprocess.DEVNULL,
    )
    piece = source.randbytes(MIB)
    for name, size in (("random.bin", RANDOM_SIZE), ("big.bin", BIG)):
        with (workspace / name).open("wb") as file:
            for _ in range(size // MIB):
                file.write(piece)
    cells = [{"cell_type": "code", "source": _text(source), "outputs": [], "metadata": {}} for _ in range(40)]
    (workspace / "notebook.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))
    _tables(workspace, source)
    return {"WSFUSE_BENCH_TAR": str(_archive(beside)), "WSFUSE_BENCH_WHEEL": str(_wheel(beside))}


def _tables(workspace: Path, source: random.Random) -> None:
    import pandas

    table = pandas.DataFrame({f"c{column}": [source.random() for _ in range(120_000)] for column in range(8)})
    table.to_csv(workspace / "table.csv", index=False)
    table.to_parquet(workspace / "table.parquet", row_group_size=10_000)


def _archive(beside: Path) -> Path:
    tree(beside / "unpacked")
    path = beside / "tree.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(beside / "unpacked", "tree")
    return path


def _wheel(beside: Path) -> Path:
    """A package of 150 modules."""
    source = random.Random(3)
    path = beside / "bench_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        names = [f"bench_package/part{number // 10}/module{number}.py" for number in range(150)]
        for name in names:
            wheel.writestr(name, "# " + _text(source).replace("\n", "\n# "))
        info = "bench_package-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bench-package\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    return path
