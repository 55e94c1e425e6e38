"""Every experiment makes two steps through the command, validates, tests, and writes its result."""

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from boxed_folders import coco, image, write_coco
from commands import CHECKOUT, call, one_run
from PIL import Image

ROOT = CHECKOUT / "experiments"
FILES = sorted(path for path in ROOT.rglob("*.yaml") if path.relative_to(ROOT).parts[0] not in ("tables", "benchmarks"))
#: What makes an experiment on a folder of images small: its own backbone, on few small images.
SMALL = ("--data.size", "32", "--data.resize", "32", "--data.num_workers", "0")
SMALL += ("--data.batch_size", "2", "--data.target_batch_size", "2")


def networks(part: Any) -> Iterator[dict[str, Any]]:
    """The arguments of every network in a file."""
    if isinstance(part, dict):
        if "backbone" in part or "encoder" in part:
            yield part
        for value in part.values():
            yield from networks(value)
    elif isinstance(part, list):
        for value in part:
            yield from networks(value)


def beyond_frozen(err: str) -> list[str]:
    """The lines of this output beside the warning of frozen statistics: without its weights an experiment gets it."""
    return [line for line in err.splitlines() if "model.norm frozen" not in line]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.yaml")), ids=lambda path: path.stem)
def test_pretrained_weights_have_a_tag(path: Path) -> None:
    """A name without a tag takes the weights that timm holds for the best today, not those of a paper's time."""
    for network in networks(yaml.safe_load(path.read_text())):
        if network.get("weights") == "timm":
            assert "." in network.get("encoder", network.get("backbone")), network


def test_there_are_experiments() -> None:
    assert {path.parent.name for path in FILES} >= {"digits", "domainbed"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two domains with two classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for domain in ("source", "target"):
        for name in ("cup", "mug"):
            (root / domain / name).mkdir(parents=True)
            for index in range(10):
                pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two domains with images and masks of two classes."""
    root = tmp_path_factory.mktemp("masks")
    rng = np.random.default_rng(0)
    for domain in ("source", "target"):
        for part, channels, most in (("images", (3,), 256), ("masks", (), 2)):
            (root / domain / part).mkdir(parents=True)
            for index in range(10):
                pixels = rng.integers(0, most, (36, 40, *channels), dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / part / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains in COCO's format, and the lists of GWHD with acquisitions of forty images each."""
    root = tmp_path_factory.mktemp("boxes")
    for domain in ("source", "target"):
        write_coco(root, domain, coco(40))
    for part, places in (("train", ("Arvalis_1", "Arvalis_2")), ("val", ("UQ_1",)), ("test", ("UQ_7", "UQ_8"))):
        lines = ["image_name,BoxesString,domain"]
        for number in range(40 * len(places)):
            image(root / "images" / f"{part}{number}.png")
            lines.append(f"{part}{number}.png,2 3 10 20;12 3 20 20,{places[number // 40]}")
        (root / f"competition_{part}.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def freed() -> Iterator[None]:
    """The networks of a run, which refer to each other in circles, go when it ends: all of them would take 7 GB."""
    yield
    gc.collect()


@pytest.mark.slow
@pytest.mark.usefixtures("few_digits", "freed")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).with_suffix("").as_posix())
def test_two_steps(
    capsys: pytest.CaptureFixture[str], images: Path, masks: Path, boxes: Path, pacs: Path, path: Path
) -> None:
    config = yaml.safe_load(path.read_text())
    fit = ["fit", "--config", path, "--trainer.max_epochs", "1", "--data.steps_per_epoch", "2", "--run.plots", "false"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    start = config["model"]["init_args"].get("checkpoint")
    unweighted: tuple[str, ...] = ()
    if config["data"]["class_path"] == "ImageFolderDomains":
        ends = ("--data.source", "source", "--data.target", "target")
        if "split" in config["data"]["init_args"]:
            ends += ("--data.split", "[0.6, 0.2, 0.2]")
        fit += ["--data.root", images, *ends, *SMALL]
        unweighted = ("--model.network.weights", "null")
    if config["data"]["class_path"] == "MaskFolders":
        fit += ["--data.root", masks, "--data.source", "source", "--data.target", "target", "--data.classes", "[a, b]"]
        fit += ["--data.size", "32", "--data.num_workers", "0", "--data.batch_size", "2"]
        unweighted = ("--model.network.weights", "null", "--model.network.encoder", "resnet50")
        if "crop" in config["data"]["init_args"]:
            fit += ["--data.crop", "32"]
        if config["model"]["init_args"].get("things"):
            fit += ["--model.things", "[a]"]
    if config["data"]["class_path"] in ("CocoDomains", "GlobalWheat"):
        fit += ["--data.root", boxes, "--data.size", "32", "--data.batch_size", "2", "--data.num_workers", "0"]
        if config["data"]["class_path"] == "CocoDomains":
            fit += ["--data.source", "source", "--data.target", "target"]
        unweighted = ("--model.network.weights", "null", "--model.network.backbone", "tiny")
        if config["model"]["init_args"].get("burn_in"):
            fit += ["--model.burn_in", "0.5"]
    if start:  # the experiment of the model that it starts from lies beside it
        first = path.with_name(f"{Path(start).name}.yaml")
        assert call(capsys, "fit", "--config", first, *fit[3:], *unweighted).code == 0
        shutil.move("runs", "source")
        fit += ["--model.checkpoint", Path("source", Path(start).name)]
    else:
        fit += unweighted
    if config["data"]["class_path"] == "RotatedMNIST":
        fit += ["--data.batch_size", "4"]
    if config["data"]["class_path"] == "PACS":
        fit += ["--data.root", pacs, *SMALL, "--model.network.weights", "null"]
    if config["model"]["init_args"].get("ten_crop"):
        fit += ["--model.ten_crop", "28"]
    if config["model"]["init_args"].get("restart"):  # two steps have no validation to go back to
        fit += ["--model.restart", "false"]
    done = call(capsys, *fit)
    assert (done.code, beyond_frozen(done.err)) == (0, [])
    result = json.loads((one_run(Path("runs")) / "result.json").read_text())
    steps = -(-result["num_target_test"] // 32) if result["setting"]["stream"] else 2
    assert (result["method"], result["steps"]) == (config["model"]["class_path"], steps)
    assert len(result["history"]) == (0 if result["setting"]["stream"] else 1)
    assert set(result["test"]) == {*([] if start else result["source"]), *result["target"]}


def test_a_style_of_one_source_after_the_way_back(capsys: pytest.CaptureFixture[str], pacs: Path) -> None:
    fit = ["fit", "--config", ROOT / "domainbed" / "udim_pacs_single.yaml", "--data.root", pacs, *SMALL]
    fit += ["--model.network.backbone", "small_bn_net", "--model.network.weights", "null", "--model.warmup", "0.5"]
    fit += ["--data.steps_per_epoch", "1", "--trainer.max_epochs", "4", "--trainer.accelerator", "cpu"]
    fit += ["--trainer.devices", "1", "--run.plots", "false"]
    done = call(capsys, *fit)
    assert (done.code, beyond_frozen(done.err)) == (0, [])
    result = json.loads((one_run(Path("runs")) / "result.json").read_text())
    assert set(result["test"]) == {"sketch", "art_painting", "cartoon", "photo"}


@pytest.mark.slow
@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("method", ["Fish", "GroupDRO"])
def test_the_recipe_of_erm_is_that_of_methods_which_count_the_sources(
    capsys: pytest.CaptureFixture[str], method: str
) -> None:
    config = yaml.safe_load((ROOT / "domainbed" / "rotated_mnist.yaml").read_text())
    config["model"]["class_path"] = method
    Path("changed.yaml").write_text(yaml.safe_dump(config))
    small = ["--trainer.max_epochs", "1", "--data.steps_per_epoch", "2", "--data.batch_size", "4"]
    small += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--run.plots", "false"]
    done = call(capsys, "fit", "--config", "changed.yaml", *small)
    assert (done.code, done.err) == (0, "")
    run = one_run(Path("runs"))
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["model"]["class_path"].rpartition(".")[2] == method
    assert json.loads((run / "result.json").read_text())["steps"] == 2
