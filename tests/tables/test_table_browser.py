"""The page of a table in a real browser, which is driven by a script in a copy of it. Left out without chromium."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dafw.tables.grid import Table
from dafw.tables.pages import write_pages
from dafw.tables.sheet import make_sheet
from dafw.tables.store import load

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="Debian's chromium is not installed")
NASTY = '<img src=x onerror="document.title=1"></script>=1+1'
HISTORY = [
    {"step": step, "validators": {"im": 0.1 * step}, "oracle": {}, "test": {"mnistm": {"accuracy": 0.4 + step / 1e3}}}
    for step in (50, 100)
]
DRIVE = (Path(__file__).parent / "drive_page.js").read_text(encoding="utf-8")


FRAME = """<!doctype html><iframe src="driven.html" width="WIDTH" height="900"></iframe><script>
addEventListener("message", (event) => { const out = document.createElement("pre"); out.id = "findings";
  out.textContent = event.data; document.body.append(out); });
</script>"""


def found(page: Path, script: str, width: int = 1440) -> dict[str, Any]:
    """What a script in a copy of the page found, in a frame of some width. The copy's policy allows this script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8")
    assert text.count("script-src '") == 1
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '")
    copy, frame = page.with_name("driven.html"), page.with_name("frame.html")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,1000"]
    command += [
        f"--user-data-dir={page.parent / 'browser'}",
        "--virtual-time-budget=3000",
        "--dump-dom",
        frame.as_uri(),
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=True)
    written = re.search(r'<pre id="findings">(.*?)</pre>', done.stdout, re.DOTALL)
    assert written is not None, f"the script did not end: {done.stderr[-2000:]}"
    findings: dict[str, Any] = json.loads(html.unescape(written[1]))
    return findings


@pytest.fixture
def page(make_table: Callable[..., Table], fill: Callable[..., Path]) -> Path:
    """The page of a table with a control, two seeds, a nasty name, and all that a run leaves."""
    rows: list[dict[str, Any]] = [
        {"name": NASTY, "model": {"class_path": "SourceOnly"}},
        {"name": "DANN", "model": {"class_path": "DANN", "init_args": {"gamma": 5}}, "control": True},
    ]
    table = make_table(title=NASTY, rows=rows, seeds=[0, 1])
    scores = {"DANN": 0.8, "DANN control": 0.6}
    root = fill(table, lambda row, task, seed: scores.get(row, 0.7) + 0.01 * seed, history=HISTORY)
    store = load(table, root)
    for cell in table.cells():
        directory = store.directories[cell.row, cell.task, cell.seed]
        (directory / "config.yaml").write_text(yaml.safe_dump(cell.config), encoding="utf-8")
        (directory / "metrics.csv").write_text("step,train/domain\n50,0.5\n100,0.25\n", encoding="utf-8")
        (directory / "log.txt").write_text(f"\x1b[1mstarted\x1b[0m\n10 %\r100 %\nseed {cell.seed} {NASTY}\n")
        (directory / "plots").mkdir()
        Image.new("RGB", (80, 40), "red").save(directory / "plots" / "embedding.png")
    return write_pages(make_sheet(store), store, root)


def test_the_page_in_a_browser(page: Path) -> None:
    got = found(page, DRIVE)
    assert got["names"] == [NASTY, "DANN"]
    assert got["descending"] == [["DANN", NASTY], "descending"]
    assert got["ascending"] == [NASTY, "DANN"]
    assert got["unsorted"] == [[NASTY, "DANN"], None]
    assert got["filtered"] == [["DANN"], "1 of 2 methods"]
    assert got["curves"] == [["DANN", "DANN control"]]  # the history knows no target of the other task
    assert got["columns"] == ["method", "optdigits → mnist", "average", "worst"]
    assert got["hidden"]
    assert got["right"].startswith(f"{NASTY}, optdigits → mnist: 70.5")
    assert got["down"].startswith("DANN, mnist → mnistm: 80.5")
    assert got["open"] == [True, "DANN, mnist → mnistm", True]
    parts = ["Pictures", "Terms of the loss", "Validators", "Command", "End of the log", "Files"]
    assert got["headings"] == [*parts, "Configuration beside DANN control"]
    assert got["charts"] == ["target test accuracy, %", "by checkpoint, %", "domain", "im"]
    assert "control: DANN control" in got["legend"]
    assert got["marks"] == 2, "a tick for each validation"
    assert got["pictures"] == ["data:image/webp;base64"]
    assert re.fullmatch(r"dafw fit --config \S+DANN-mnist-mnistm-s0-\w+/config.yaml", got["command"])
    assert got["log"] == f"started\n100 %\nseed 0 {NASTY}"
    assert list(got["settings"]) == ["model.weight"]
    assert "-s1-" in got["second"]
    assert got["closed"] == [True, got["down"]]
    assert {"model.class_path", "model.gamma"} <= set(got["compared"])
    assert got["drawn"]
    assert got["links"]
    assert all(re.match(r"\.\./\.\./[\w.+-]+/", link) for link in got["links"]), "a link leads out"
    assert got["requests"] == []
    assert got["refused"] == ["https://example.org/"], "what the test itself asked for, and no more"
    assert got["title"] == NASTY


def test_on_a_phone_the_first_column_and_the_average_stay_in_view(page: Path) -> None:
    script = """
    const card = document.querySelector(".card");
    const head = [...document.querySelector("table.grid").querySelectorAll("thead th")];
    const sides = (cell) => { const box = cell.getBoundingClientRect(); return [box.left, box.right]; };
    const edge = card.getBoundingClientRect();
    const at = (to) => { card.scrollLeft = to; return [sides(head[0]), sides(head.at(-2)), edge.right]; };
    const seen = [0, 60].map(at);
    const curve = document.querySelector("#training svg").getBoundingClientRect().width;
    const scrolls = card.scrollWidth > card.clientWidth;
    const found = { seen, scrolls, page: document.documentElement.scrollWidth, width: innerWidth, curve };
    parent.postMessage(JSON.stringify(found), "*");
    """
    got = found(page, script, 390)
    assert got["width"] == 390
    assert got["page"] <= 390, "the page itself does not scroll sideways"
    assert got["scrolls"]
    for (left, _), (_, right), edge in got["seen"]:
        assert 0 <= left < 30
        assert edge - 3 <= right <= edge
    assert got["curve"] > 300


def test_at_1440_pixels_no_column_of_the_runs_is_cut(page: Path) -> None:
    script = """
    document.querySelector("details.runs").open = true;
    const card = document.querySelector("details.runs .card");
    parent.postMessage(JSON.stringify({ inner: card.scrollWidth, outer: card.clientWidth }), "*");
    """
    got = found(page, script)
    assert got["inner"] == got["outer"]


def test_without_its_script_the_page_shows_the_table(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    bare = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    (page.parent / "bare.html").write_text(bare, encoding="utf-8")
    script = """
    const seen = (query) => [...document.querySelectorAll(query)].filter((one) => one.offsetParent).length;
    const found = { rows: seen("table.grid tr"), pictures: seen("img"), buttons: seen("button") };
    parent.postMessage(JSON.stringify(found), "*");
    """
    got = found(page.parent / "bare.html", script)
    assert got == {"rows": (1 + 4) + (1 + 3) + (1 + 3), "pictures": 2, "buttons": 0}
