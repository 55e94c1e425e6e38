"""The wheel holds what it needs, and works without the checkout."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from commands import CHECKOUT, QUICK, environment

pytestmark = pytest.mark.slow

RUN = """
import sys
from pathlib import Path

installed, checkout = map(Path, sys.argv[1:3])
sys.path[:] = [str(installed), *(path for path in sys.path if Path(path or ".").resolve() != checkout)]

from dafw.cli import main

for command in (["--version"], ["methods"], ["datasets"], ["table", "list"], ["table", "show", "digits_mini"]):
    print("$", *command)
    assert main(command) == 0, command
print("$ fit")
assert main(sys.argv[3:]) == 0

ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("dafw", "datamodules")}
assert len(ours) > 40, sorted(ours)
for name, module in ours.items():
    assert Path(module.__file__).is_relative_to(installed), (name, module.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, with what lies about in a checkout that was used."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    for name in ("dafw", "datamodules", "experiments"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "runs"))
        for folder in (source / name, source / name / "tables"):
            (folder / "__pycache__").mkdir(parents=True)
            (folder / "__pycache__" / "left.cpython-311.pyc").write_bytes(b"")
    (source / "tests").mkdir()
    (source / "tests" / "test_left.py").write_text("")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the wheel's content, which is all that installing a pure wheel does."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_its_name(wheel: Path) -> None:
    assert wheel.name.startswith("dafw-")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_its_content(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "dafw/py.typed",
        "dafw/cli.py",
        "dafw/commands/new.py",
        "datamodules/base.py",
        "datamodules/digits.py",
    } <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dafw", "datamodules"}
    files = {name: name.rpartition("/")[2] for name in names}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert not [name for name, file in files.items() if file.startswith("test_") or name.startswith("tests/")]
    for folder, home in (("dafw", ""), ("datamodules", ""), ("experiments", "dafw/")):
        for path in (CHECKOUT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".csv", ".html", ".css", ".js") and not {"__pycache__", "runs"} & set(
                path.parts
            ):
                assert f"{home}{path.relative_to(CHECKOUT).as_posix()}" in names


def test_its_metadata(installed: Path) -> None:
    (folder,) = installed.glob("dafw-*.dist-info")
    package = PathDistribution(folder)
    assert [(script.name, script.value) for script in package.entry_points] == [("dafw", "dafw.cli:main")]
    assert any(requirement.startswith("torch>=") for requirement in package.requires or ())
    assert (folder / "licenses" / "LICENSE").exists()


def test_it_works_from_anywhere(installed: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-I", "-c", RUN, str(installed), str(CHECKOUT), "fit", "--model", "DANN", *QUICK]
    variables = environment(DAFW_CACHE=str(tmp_path / "cache"))
    del variables["PYTHONPATH"]
    done = subprocess.run(arguments, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    for expected in (
        "DANN                 [adaptation]",
        "ImageFolderDomains",
        "\ndigits  ",
        "$ table show digits_mini\n",
    ):
        assert expected in said
    assert len(list(tmp_path.glob("runs/DANN-a-b-s0-*/result.json"))) == 1
