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
#: What the script finds goes into an element that the dump of the page shows.
DRIVE = """
const findings = {};
const requests = [];
addEventListener("securitypolicyviolation", (event) => requests.push(event.blockedURI || event.violatedDirective));
const names = (table = document.querySelector("table.grid")) =>
  [...table.tBodies].filter((body) => !body.hidden).map((body) => body.rows[0].cells[0].textContent.trim());
const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const type = (id, text) => { const field = document.getElementById(id); field.value = text; field.dispatchEvent(new Event("input")); };
const heads = [...document.querySelectorAll("table.grid thead button")];
findings.names = names();
heads[1].click();
findings.descending = [names(), heads[1].closest("th").getAttribute("aria-sort")];
heads[1].click();
findings.ascending = names();
heads[1].click();
findings.unsorted = [names(), heads[1].closest("th").getAttribute("aria-sort")];
type("methods", "dann");
findings.filtered = [names(), document.getElementById("shown").textContent];
findings.curves = [...document.querySelectorAll("#training .chart")].map((one) => [...one.querySelectorAll(".legend li")].map((item) => item.textContent));
type("methods", "");
type("tasks", "optdigits");
findings.columns = heads.filter((one) => one.offsetParent).map((one) => one.textContent);
type("tasks", "");
const hide = document.querySelector(".kind[value=gain]");
hide.click();
findings.hidden = [...document.querySelectorAll("tr.gain")].every((line) => !line.offsetParent);
hide.click();
const first = document.querySelector("table.grid td button");
first.focus();
press(first, "ArrowRight");
findings.right = document.activeElement.getAttribute("aria-label");
press(document.activeElement, "ArrowLeft");
press(document.activeElement, "ArrowDown");
findings.down = document.activeElement.getAttribute("aria-label");
document.activeElement.click();
const dialog = document.querySelector("dialog");
findings.open = [dialog.open, dialog.querySelector("h2").textContent, dialog.contains(document.activeElement)];
findings.headings = [...dialog.querySelectorAll("h3")].map((one) => one.textContent);
findings.charts = [...dialog.querySelectorAll(".chart > b")].map((one) => one.textContent);
findings.legend = [...dialog.querySelectorAll(".chart")][0].querySelector(".legend").textContent;
findings.marks = [...dialog.querySelectorAll(".chart")][0].querySelectorAll(".mark").length;
findings.pictures = [...dialog.querySelectorAll("img")].map((one) => one.src.slice(0, 22));
findings.command = dialog.querySelector("pre").textContent;
findings.log = dialog.querySelectorAll("pre")[1].textContent;
findings.settings = Object.fromEntries([...dialog.querySelectorAll("table.settings")].at(0).querySelectorAll("tbody tr").values()
  .map((line) => [...line.cells].map((cell) => cell.textContent)).map(([key, ...values]) => [key, values]));
dialog.querySelectorAll(".seeds button")[1].click();
findings.second = dialog.querySelector("pre").textContent;
dialog.querySelector(".close").click();
findings.closed = [!dialog.open, document.activeElement.getAttribute("aria-label")];
const [one, other] = document.querySelectorAll("#compare select");
one.value = "1"; other.value = "0"; other.dispatchEvent(new Event("change"));
findings.compared = [...document.querySelectorAll("#compare tbody th")].map((cell) => cell.textContent);
findings.drawn = [...document.querySelectorAll(".drawn")].every((section) => section.hidden);
findings.links = [...document.querySelectorAll("a[href], [src], [srcset], link, form, iframe")].map((element) =>
  element.getAttribute("href") ?? element.getAttribute("src") ?? element.getAttribute("srcset") ?? element.outerHTML).filter((link) => !link.startsWith("data:"));
fetch("https://example.org/").catch(() => {
  findings.requests = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
  setTimeout(() => {
    findings.refused = requests;
    findings.title = document.title;
    parent.postMessage(JSON.stringify(findings), "*");
  }, 50);
});
"""


FRAME = """<!doctype html><iframe src="driven.html" width="{width}" height="900"></iframe><script>
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
    frame.write_text(FRAME.format(width=width), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,1000"]
    command += [f"--user-data-dir={page.parent / 'browser'}", "--virtual-time-budget=3000", "--dump-dom", frame.as_uri()]
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
    print(got["settings"])
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
    const head = [...document.querySelectorAll("table.grid thead th")];
    const sides = (cell) => { const box = cell.getBoundingClientRect(); return [box.left, box.right]; };
    const edge = card.getBoundingClientRect();
    const seen = [0, 60].map((to) => { card.scrollLeft = to; return [sides(head[0]), sides(head.at(-2)), edge.right]; });
    parent.postMessage(JSON.stringify({ seen, scrolls: card.scrollWidth > card.clientWidth, page: document.documentElement.scrollWidth,
      width: innerWidth, curve: document.querySelector("#training svg").getBoundingClientRect().width }), "*");
    """
    got = found(page, script, 390)
    assert got["width"] == 390
    assert got["page"] == 390, "the page itself does not scroll sideways"
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
    parent.postMessage(JSON.stringify({ rows: [...document.querySelectorAll("table.grid tr")].filter((line) => line.offsetParent).length,
      picture: [...document.querySelectorAll("img")].every((one) => one.offsetParent), buttons: document.querySelectorAll("button").length }), "*");
    """
    got = found(page.parent / "bare.html", script)
    assert got == {"rows": 1 + 4, "picture": True, "buttons": 0}
