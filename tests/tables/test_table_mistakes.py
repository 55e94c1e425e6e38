"""Mistakes in a table are found before its first run starts."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dafw.cli import main

TOY = {"class_path": "dafw.testing.toys.ToyData", "init_args": {"batch_size": 8, "steps_per_epoch": 2}}
NETWORK = {"class_path": "dafw.nn.network.Network", "init_args": {"backbone": "dafw.testing.toys.ToyNet"}}
RUN = {"plots": False, "wandb": "disabled"}


def table(**changes: Any) -> dict[str, Any]:
    """A table of one run, with some keys changed."""
    base = {
        "data": TOY,
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "run": RUN,
        "model": {"init_args": {"network": NETWORK}},
    }
    rows = [{"name": "x", "model": {"class_path": "SourceOnly"}}]
    return {"tasks": ["a->b"], "seeds": [0], "base": base, "rows": rows} | changes


class Started(Exception):
    """Runs would start."""


def start(*_: Any, **__: Any) -> None:
    raise Started


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, which is the working directory, and no process that makes a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dafw.tables.launch.run_table", start)


def refused(capsys: pytest.CaptureFixture[str], text: str) -> str:
    """The one sentence with which ``dafw table run`` refuses a table file."""
    Path("t.yaml").write_text(text, encoding="utf-8")
    code = main(["table", "run", "t.yaml"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("dafw: error: ")
    assert err.count("\n") == 1
    assert len(err) < 500
    assert not Path("runs").exists(), "something was left behind"
    return err.removeprefix("dafw: error: ").rstrip("\n")


def row(class_path: Any, name: str = "late", **options: Any) -> dict[str, Any]:
    return {"name": name, "model": {"class_path": class_path, **({"init_args": options} if options else {})}}


FIRST = row("SourceOnly", "early")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": [FIRST, row("DANM")]}, 'late on a->b: unknown method "DANM": did you mean "DAN"?'),
        (
            {"rows": [FIRST, row("DANN", widht=3)]},
            'late on a->b: unknown key "model.widht": did you mean "width"?',
        ),
        ({"rows": [FIRST, row("DANN", width=0)]}, "late on a->b: model.width must be at least 1, not 0"),
        ({"rows": [FIRST, row("DANN", gamma=math.nan)]}, "late on a->b: model.gamma must be 0 or more, not nan"),
        ({"tasks": ["a->b", "a->zz"]}, 'x on a->zz: unknown domain "zz": (choices: a, b, c)'),
        ({"tasks": ["a->b", "zz->b"]}, 'x on zz->b: unknown domain "zz": (choices: a, b, c)'),
        ({"tasks": ["a->b", "a->a"]}, 'the task "a->a" in t.yaml has a as a source and as a target'),
        ({"per_task": {"a->b": {"trainer": {"max_epoch": 2}}}}, 'x on a->b: unknown key "trainer.max_epoch"'),
        ({"select": ["foo"]}, 'unknown selection criterion "foo": (choices: ac, atc_ne, dev, entropy, im, last'),
        ({"select": ["source_acuracy"]}, 'did you mean "source_accuracy"?'),
        (
            {"metric": "acuracy"},
            'x on a->b: unknown metric "acuracy": did you mean "accuracy"? (choices: accuracy, mean_',
        ),
        ({"metric": "h_score"}, 'x on a->b: unknown metric "h_score"'),
        ({"seeds": [2**70]}, "seeds in t.yaml is a list of whole numbers from 0 to 2**32 - 1, as in [0, 1, 2]"),
        ({"rows": [row(3)]}, 'class_path of model of row "late" of t.yaml is the name of a class, not 3'),
        (
            {"rows": [{"name": "x", "model": {"class_path": "DANN", "init_args": [1]}}]},
            'init_args of model of row "x" of t.yaml is not a mapping of keys to values',
        ),
        (
            {"rows": [FIRST | {"trainer": {"limit_test_batches": 0.5}}]},
            'row "early" of t.yaml sets trainer.limit_test_batches, and a table shows accuracies of whole test splits',
        ),
        (
            {"rows": [FIRST, row("DANN") | {"trainer": {"callbacks": [{"class_path": "EarlyStopping"}]}}]},
            "late on a->b: trainer.callbacks.monitor must be given",
        ),
        (
            {
                "rows": [
                    FIRST
                    | {"trainer": {"callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/x"}}]}}
                ]
            },
            'early on a->b: unknown monitor of EarlyStopping "val/x"',
        ),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str) -> None:
    found = refused(capsys, yaml.safe_dump(table(**changes)))
    assert said in found
    assert "oracle/" not in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows: " + "[" * 2000 + "]" * 2000, "t.yaml is not YAML: its values are nested too deeply"),
        ("a: &a [*a]\nrows: *a", "t.yaml is not YAML: its values are nested too deeply"),
        ("rows: [x", "t.yaml is not YAML: look at line 1"),
    ],
)
def test_files(capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    assert said in refused(capsys, text)


def test_another_encoding(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.yaml").write_bytes("note: caf\xe9".encode("latin-1"))
    assert main(["table", "status", "t.yaml"]) == 2
    assert "t.yaml is not YAML: 'utf-8' codec can't decode" in capsys.readouterr().err


def test_a_date_is_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    text = yaml.safe_dump(table()).replace("name: x", "name: 2024-01-01")
    Path("t.yaml").write_text(text + "title: 2024-05-06\n")
    assert main(["table", "status", "t.yaml"]) == 0
    assert "missing      2024-01-01 a->b seed 0" in capsys.readouterr().out
    assert 'model.width: expected int, got "2024-01-01"' in refused(
        capsys, yaml.safe_dump(table(rows=[row("DANN", width="W")])).replace("W", "2024-01-01")
    )


@pytest.mark.parametrize("given", [None, {"network": NETWORK}])
def test_a_row_that_starts_from_another_one_gets_its_network(
    given: dict[str, Any] | None,
) -> None:
    """Its checkpoint does not exist yet."""
    shot = {"name": "shot", "model": {"class_path": "SHOT"}, "from": "early"}
    if given:
        shot["model"]["init_args"] = given  # type: ignore[index]
    Path("t.yaml").write_text(yaml.safe_dump(table(rows=[FIRST, shot])))
    with pytest.raises(Started):
        main(["table", "run", "t.yaml"])


@pytest.mark.parametrize("kind", ["classes", "masks"])
def test_files_before_the_model_that_a_row_starts_from(tmp_path: Path, pacs: Path, kind: str) -> None:
    """The classes come from the source's files, since no checkpoint knows them yet."""
    network, problem = NETWORK, None
    data: dict[str, Any] = {"class_path": "ImageFolderDomains", "init_args": {"root": str(pacs), "size": 8}}
    tasks, method = ["photo->sketch"], row("SHOT")
    if kind == "masks":
        for name in ("one", "two"):
            for folder in ("images", "masks"):
                (tmp_path / name / folder).mkdir(parents=True)
                for index in range(10):
                    Image.new("L" if folder == "masks" else "RGB", (16, 16)).save(
                        tmp_path / name / folder / f"{index}.png"
                    )
        data = {"class_path": "MaskFolders", "init_args": {"root": str(tmp_path), "classes": ["none", "cell"]}}
        network = {"class_path": "dafw.nn.segmentation.SegmentationNetwork", "init_args": {"arch": "tiny_unet"}}
        problem, tasks, method = "dafw.problems.Segmentation", ["one->two"], row("AdaMI")
    base = table()["base"]
    given = {"network": network} | ({"problem": problem} if problem else {})
    content = table(
        base=base | {"data": data, "model": {"init_args": given}},
        tasks=tasks,
        rows=[FIRST, method | {"from": "early"}],
        **({"metric": "miou"} if problem else {}),
    )
    Path("t.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(Started):
        main(["table", "run", "t.yaml"])
