"""What the pages show works: Python blocks run top to bottom, and every `dafw` line of a shell block runs."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import fresh, run

from dafw.tables.reading import KEYS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, _, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def pages_with(language: str) -> Any:
    found = [page for page in PAGES if blocks(page, language)]
    return pytest.mark.parametrize("page", found, ids=lambda page: page.stem)


def test_the_pages_have_code() -> None:
    counts = {language: sum(len(blocks(page, language)) for page in PAGES) for language in ("python", "sh", "yaml")}
    assert all(count > 0 for count in counts.values()), counts


@pages_with("python")
def test_python(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    sys.modules["page"] = type(sys)("page")
    for number, text in enumerate(blocks(page, "python")):
        exec(compile(text, f"{page.name}, block {number}", "exec"), names)
        vars(sys.modules["page"]).update(names)


@pytest.mark.slow
@pages_with("sh")
def test_commands(page: Path, tmp_path: Path) -> None:
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    for _, title, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if title:  # a file that the commands use
            (tmp_path / title).write_text(text, encoding="utf-8")
    ran = 0
    for line in (line for text in blocks(page, "sh") for line in text.splitlines()):
        if line.startswith("dafw "):
            arguments = shlex.split(line, comments=True)[1:]
            if arguments[0] == "fit" and page.name != "README.md":  # there the pictures are drawn, elsewhere tested
                arguments += ["--run.plots", "false"]
            if arguments[:2] == ["table", "run"]:  # each worker imports everything anew
                arguments += ["--workers", "1"]
            if any(argument.startswith("digits/quick_") for argument in arguments):  # their numbers take a while
                arguments += ["--data.steps_per_epoch", "10"]
            if "--trainer.devices" in arguments:  # starts its other ranks as it was started itself
                done = run(tmp_path, "-m", "dafw", *arguments)
            else:
                done = fresh(tmp_path, *arguments, timeout=300)
            assert done.code == 0, f"{line}\n{done.out[-2000:]}\n{done.err[-2000:]}"
            ran += 1
        elif line.startswith("python "):
            assert run(tmp_path, *shlex.split(line)[1:]).code == 0
        else:
            assert line.split()[0] in ("git", "cd", "make"), line
    assert ran or page.name in ("README.md", "index.md", "speed.md")


@pages_with("yaml")
def test_tables_in_yaml(page: Path) -> None:
    for text in blocks(page, "yaml"):
        assert set(yaml.safe_load(text)) <= set(KEYS)


def listed_pages(menu: list[dict[str, Any]]) -> list[str]:
    places = [place for entry in menu for place in entry.values()]
    return [name for place in places for name in ([place] if isinstance(place, str) else listed_pages(place))]


def test_the_first_page_and_the_menu_list_all_pages() -> None:
    names = {page.relative_to(DOCS).as_posix() for page in PAGES if page.is_relative_to(DOCS)}
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("!!python/name:", ""))["nav"]
    listed = listed_pages(menu)
    assert sorted(listed) == sorted(names)
    linked = set(re.findall(r"\]\(([\w/-]+\.md)\)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert linked == names - {"index.md"}


LINK = re.compile(r"\]\(([\w./-]+\.md)?(?:#([\w-]+))?\)")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.is_relative_to(DOCS)], ids=lambda page: f"{page.parent.stem}-{page.stem}"
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for name, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        other = page.parent / name if name else page
        assert other.is_file(), name
        headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", one).strip().lower()) for one in headings}
        assert not anchor or anchor in slugs, (name, anchor)


def test_make_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for page in PAGES:
        named |= set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their code cells run in order. They are kept without outputs."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        assert cell["outputs"] == []
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)


def test_there_is_a_notebook_and_a_page_leads_to_it() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert NOTEBOOKS
    assert all(f"({path.name})" in pages for path in NOTEBOOKS)
