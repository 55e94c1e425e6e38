"""Domains and classes whose names look like something else: numbers, dates, truth values, YAML, JSON, mathematics."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import call, one_run, rows
from PIL import Image

from dafw.names import quoted
from dafw.run.arguments import with_text_names
from dafw.run.config import parse, resolved_config
from dafw.run.directory import run_directory
from dafw.run.identity import config_hash
from dafw.run.result import read_result

DOMAINS = [
    *("100", "010", "no", "1e3", "2020-01-01", "null", "~", "true", "0.5"),
    *("[bold]", "- x", "a, b", "{x}", "#x", "a: b", "*x", "$\\frac{$", 'it\'s "q"', "a\nb", "漢" * 80),
]
CLASSES = ["$\\frac{$", "<b>&", "a[b]", "=1+1", "x\ny", "no", "010"]


@pytest.fixture
def folders(workplace: Path) -> Path:
    """Folders of all these domains; each has an image of two classes. A file has the name of a domain."""
    for domain in (*DOMAINS, "photo"):
        for name in ("cup", "mug"):
            folder = workplace / "images" / domain / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "0.png")
    (workplace / "photo").write_text("[a, b]")
    return workplace / "images"


SMALL = ("--model.network.backbone", "small_bn_net")
IMAGES = ("--data", "ImageFolderDomains", "--data.root", "images", "--data.size", "8", "--data.resize", "8")


def served(*arguments: str) -> tuple[list[str], list[str]]:
    """The domains of a configuration. It is the same after it was written to a file and read again."""
    cli = parse(["--model", "SourceOnly", *SMALL, *arguments])
    config = resolved_config(cli)
    Path("config.yaml").write_text(quoted(yaml.safe_dump(config, sort_keys=False)), encoding="utf-8")
    again = resolved_config(parse(["--config", "config.yaml"]))
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert run_directory(again, Path("runs")) == run_directory(config, Path("runs"))
    return cli.datamodule.source, cli.datamodule.target


def test_lists_of_names(folders: Path) -> None:
    assert served(*IMAGES, "--data.source", "[100,010, no]", "--data.target=[null,~]") == (
        ["100", "010", "no"],
        ["null", "~"],
    )
    assert served(*IMAGES, "--data.source", json.dumps(DOMAINS), "--data.target", "photo") == (DOMAINS, ["photo"])


@pytest.mark.parametrize("name", ["010", "null", "- x", "a: b", 'it\'s "q"'])
def test_a_single_name(folders: Path, name: str) -> None:
    assert served(*IMAGES, "--data.source", name, "--data.target", "photo") == ([name], ["photo"])


def test_names_in_files(folders: Path) -> None:
    given = (
        "data: {class_path: ImageFolderDomains, init_args: {root: images, size: 8, resize: 8, source: %s, target: %s}}"
    )
    Path("given.yaml").write_text(given % ("[010, no, 1e3]", "~"))
    assert served("--config", "given.yaml") == (["010", "no", "1e3"], ["~"])
    Path("given.yaml").write_text(given % ("'[bold]'", "2020-01-01"))
    assert served("--config", "given.yaml") == (["[bold]"], ["2020-01-01"])


def test_the_command_line_and_a_file_make_the_same_run(folders: Path) -> None:
    Path("given.yaml").write_text("data: {init_args: {source: 010, target: [no, ~]}}")
    one = parse(["--model", "SourceOnly", *SMALL, *IMAGES, "--config", "given.yaml"])
    other = parse(["--model", "SourceOnly", *SMALL, *IMAGES, "--data.source", "010", "--data.target", "[no, ~]"])
    assert config_hash(resolved_config(one)) == config_hash(resolved_config(other))


def test_only_names_are_rewritten() -> None:
    given = ["--data.source", "a", "--data.size", "010", "--data.label_sets", "closed", "--data.label_sets.common", "2"]
    assert with_text_names(given) == ['--data={"init_args": {"source": "a"}}', *given[2:]]
    assert with_text_names(["--data.target"]) == ["--data.target"]
    sets = '--data={"init_args": {"label_sets": {"common": ["010", "no"]}}}'
    assert with_text_names(["--data.label_sets.common", "[010, no]"]) == [sets]
    assert with_text_names(["--data.init_args.label_sets={common: [010, no]}"]) == [sets]


def test_a_run_with_odd_names_draws_and_predicts_them(
    capsys: pytest.CaptureFixture[str], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for domain in ("$_{$", "=1+1"):
        for name in CLASSES:
            folder = workplace / "images" / domain / name
            folder.mkdir(parents=True)
            for index in range(14):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    network = ("--model.network.backbone", "small_bn_net", "--model.network.input_size", "8")
    domains = ("--data.source", "$_{$", "--data.target", "=1+1", "--data.augment", "none", "--data.batch_size", "4")
    short = ("--trainer.max_epochs", "1", "--data.steps_per_epoch", "1", "--trainer.accelerator", "cpu")
    command = ("--model", "SourceOnly", *network, *IMAGES, *domains, *short)
    done = call(capsys, "fit", *command)
    assert done.code == 0, done.err
    assert "could not be drawn" not in done.err
    folder = one_run(Path("runs"))
    assert {path.name for path in folder.glob("plots/*.png")} == {"confusion.png", "curves.png", "embedding.png"}
    result = read_result(folder)
    assert result is not None
    assert set(result.test) == {"$_{$", "=1+1"}
    assert call(capsys, "predict", "--config", str(folder / "config.yaml")).code == 0
    found = rows(Path("predictions.csv").read_text(encoding="utf-8"))
    assert {row["domain"] for row in found} == {"'=1+1"}
    assert {row["prediction"].removeprefix("'") for row in found} <= set(CLASSES)
    assert {row["sample"].split("/")[0] for row in found} == {"'=1+1"}
    assert {f"p_{name}" for name in CLASSES} < set(found[0])
