"""What a table says and shows of boxes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dafw.plots import Boxes, kept_boxes
from dafw.run.directory import EXAMPLES
from dafw.tables import pages
from dafw.tables.grid import Table
from dafw.tables.sheet import make_sheet
from dafw.tables.store import Store, load

Make = Callable[..., Table]
Fill = Callable[..., Path]


def said(table: Table, root: Path) -> tuple[str, ...]:
    return make_sheet(load(table, root)).caption


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("ap50", "COCO's average precision at an overlap of 0.5 (ap: coco)"),
        ("ap50_voc07", "PASCAL VOC until 2009 (ap: voc07)"),
        ("ap50_voc", "PASCAL VOC since 2010 (ap: voc)"),
        ("detection_accuracy", "GWHD's average domain accuracy"),
    ],
)
def test_a_caption_names_the_average_precision_its_classes_and_images_without_a_box(
    make_table: Make, fill: Fill, metric: str, words: str
) -> None:
    table = make_table(seeds=[0], tasks=["mnist->mnistm"], metric=metric)
    values = {metric: 0.5, f"{metric}/car": 0.5, f"{metric}/bus": float("nan"), "images_without_box": 0.125}
    caption = said(table, fill(table, lambda *_: 0.5, test={"mnistm": values}, metric=metric))
    assert any(words in sentence for sentence in caption)
    if metric != "detection_accuracy":
        assert "The mean is over 1 class; no test box is labelled bus." in caption
    assert "Test images without a labelled box count too: 12.5 % of those of mnistm." in caption


def keep(store: Store, row: str, score: float, image: float = 0.5) -> None:
    for task in store.table.tasks:
        folder = store.directories[row, task, 0]
        label = Boxes(np.array([[2.0, 2, 9, 9]]), np.array([1]))
        found = Boxes(label.boxes + 1, label.labels, np.array([score]))
        examples = [kept_boxes(np.full((16, 16, 3), image), label, found)] * 3
        (folder / EXAMPLES).parent.mkdir()
        content = {"kind": "boxes", "classes": ["car", "bus"], "targets": {task.partition("->")[2]: examples}}
        (folder / EXAMPLES).write_text(json.dumps(content))


def test_a_page_shows_the_same_images_for_source_only_control_and_method(
    make_table: Make, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table(seeds=[0, 1])
    root = fill(table, lambda *_: 0.5)
    store = load(table, root)
    page = pages.write_pages(make_sheet(store), store, root)
    assert not (page.parent / "examples.png").exists(), "nothing was kept"
    for row, score in (("source only", 0.6), ("DANN control", 0.7), ("DANN", 0.8)):
        keep(store, row, score)
    figures: list[Any] = []
    draw = pages._images
    monkeypatch.setattr(pages, "_images", lambda *given: figures.append(draw(*given)) or figures[-1])
    page = pages.write_pages(make_sheet(store), store, root)
    assert (page.parent / "examples.png").is_file()
    assert (page.parent / "examples-dark.png").is_file()
    assert "test images of each target at seed 0 with the labels" in page.read_text()
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes[:4]] == ["label", "source only", "DANN control", "DANN"]
    assert len(axes) == 4 * 2 * 2, "two images of each of two tasks"
    assert [axis.get_ylabel() for axis in axes[::4]] == ["mnist->mnistm"] * 2 + ["optdigits->mnist"] * 2
    assert [[text.get_text() for text in axis.texts] for axis in axes[:4]] == [[], ["0.60"], ["0.70"], ["0.80"]]
    assert pages.write_pages(make_sheet(store), store, root) == page
    assert len(figures) == 2, "nothing changed, so nothing is drawn anew"


def test_a_control_that_several_rows_share_is_shown_once(make_table: Make, fill: Fill) -> None:
    rows = [
        {"name": "start", "model": {"class_path": "SourceOnly"}},
        {"name": "control", "from": "start", "model": {"class_path": "SourceOnly"}},
        *({"name": name, "control": "control", "model": {"class_path": name}} for name in ("DANN", "CDAN")),
    ]
    table = make_table(seeds=[0], tasks=["mnist->mnistm"], rows=rows)
    store = load(table, fill(table, lambda *_: 0.5))
    for row in ("start", "control", "DANN", "CDAN"):
        keep(store, row, 0.6)
    assert list(pages._examples(store)["domains"]["mnist->mnistm"]) == ["control", "DANN", "CDAN"]


def test_a_row_without_examples_leaves_the_picture_out(make_table: Make, fill: Fill) -> None:
    table = make_table(seeds=[0], tasks=["mnist->mnistm"])
    store = load(table, fill(table, lambda *_: 0.5))
    keep(store, "source only", 0.6)
    assert pages._examples(store) == {}
    for row in ("DANN", "DANN control"):
        keep(store, row, 0.6)
    assert list(pages._examples(store)["domains"]) == ["mnist->mnistm"]
    (store.directories["DANN", "mnist->mnistm", 0] / EXAMPLES).write_text("{")
    assert pages._examples(store) == {}
