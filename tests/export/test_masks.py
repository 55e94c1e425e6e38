"""A finished run of masks as an exported model: it writes the masks that the run writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import PLAIN, call, refused, rows
from PIL import Image
from timm.layers.conv2d_same import Conv2dSame

import dafw
from dafw.cli import main
from dafw.errors import UserError
from dafw.export.folder import Form
from dafw.export.making import Wanted, export
from dafw.export.pretrained import Pretrained
from dafw.methods import SourceOnly
from dafw.nn.segmentation import SegmentationNetwork
from dafw.testing.cases import case

SIZES = ((20, 24), (22, 20), (31, 23))
Written = tuple[dict[str, bytes], list[dict[str, str]]]
"""Masks by name, and the rows of the index."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three sizes by day and by night, with masks of a bright square."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for domain in ("day", "night"):
        for index in range(18):
            mask = np.zeros(SIZES[index % 3], np.uint8)
            mask[3 + index % 5 : 12 + index % 5, 4:14] = 1
            pixels = random.integers(0, 120, (*mask.shape, 3)) + 110 * mask[..., None]
            for name, one in {"images": pixels, "masks": mask}.items():
                (root / domain / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(one.astype(np.uint8)).save(root / domain / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def masks_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on them, whose evaluation scales the short side."""
    folder = tmp_path_factory.mktemp("masks") / "run"
    options = {
        **{"--model": "AdaBN", "--model.problem": "Segmentation", "--data": "MaskFolders", "--data.root": photos},
        **{"--model.network": "dafw.testing.dense_toys.ToySegmenter", "--data.classes": "[ground, thing]"},
        **{"--data.source": "day", "--data.target": "night", "--data.size": 16, "--data.crop": 12, "--model.lr": 0.1},
        **{"--data.split": "[0.5, 0.25, 0.25]", "--data.steps_per_epoch": 8},
        **{"--trainer.max_epochs": 1, "--run.wandb": "disabled", "--run.dir": folder},
    }
    assert main(["fit", *PLAIN, *(str(word) for option in options.items() for word in option)]) == 0
    return folder


def written(folder: Path) -> Written:
    """What a folder of predictions holds."""
    pngs = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    return pngs, [dict(row) for row in rows((folder / "index.csv").read_text())]


def predict(capsys: pytest.CaptureFixture[str], model: Path, photos: Path, output: Path) -> Written:
    done = call(capsys, "predict", model, "--images", photos / "night" / "images", "--output", output)
    assert done.code == 0, done.err
    assert done.out.startswith("18 predictions; skipped files: 0")
    return written(output)


@pytest.mark.parametrize("resize", [True, False], ids=["inside", "outside"])
def test_an_exported_model_writes_what_the_run_writes(
    resize: bool, masks_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dafw.load(masks_run).save_pretrained(tmp_path / "model", resize=resize)
    assert (config.kind, config.resize, config.shape) == ("segmentation", resize, (3, 0, 0))
    assert config.difference <= 1e-5
    expected, wanted = predict(capsys, masks_run, photos, tmp_path / "run")
    found, index = predict(capsys, tmp_path / "model", photos, tmp_path / "exported")
    assert found == expected
    for one, other in zip(index, wanted, strict=True):
        assert abs(float(one.pop("confidence")) - float(other.pop("confidence"))) < 1e-5
        assert one == other
    assert len({row["share_thing"] for row in wanted}) > 3, "the masks show nothing"
    paths = sorted((photos / "night" / "images").glob("*.png"))[:3]
    predicted = dafw.from_pretrained(tmp_path / "model").predict(paths)
    files = {row["sample"]: row["file"] for row in wanted}
    for path, mask in zip(paths, predicted.masks, strict=True):
        with Image.open(tmp_path / "run" / files[str(path)]) as image, Image.open(path) as photo:
            assert np.array_equal(np.asarray(image), mask.numpy())
            assert image.size == photo.size
    predicted.write(tmp_path / "again")
    assert set(written(tmp_path / "again")[0].values()) <= set(expected.values())


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_other_forms(form: Form, masks_run: Path, photos: Path, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    run = dafw.load(masks_run)
    config = run.save_pretrained(tmp_path / "model", to=form)
    assert config.difference <= (0.02 if form == "onnx" else 1e-5)
    made = dafw.from_pretrained(tmp_path / "model", trust=True)
    for count, height, width in ((1, 41, 33), (3, 18, 29)):
        found = made.probabilities(torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8))
        assert found.shape == (count, 2, height, width)
        torch.testing.assert_close(found.sum(1), torch.ones(count, height, width))
    prepared = run.transform(photos / "night" / "images" / "0.png")[None]
    assert run.module(prepared)["probabilities"].shape == (1, 2, 16, 19)


def test_the_folder_says_what_it_is(masks_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "export", masks_run, "--output", tmp_path / "model", "--dtype", "bfloat16")
    assert done.code == 0, done.err
    config = dafw.from_pretrained(tmp_path / "model").config
    assert 0 < config.difference <= config.tolerance
    card = (tmp_path / "model" / "README.md").read_text().replace("\\", "")
    for word in (
        "AdaBN on day->night",
        "float32 (N, 2, H, W), of each pixel of the images that went in",
        "(short side to 16)",
        "scaled back inside of the model",
        "miou on the test images of night",
        "pixels of the same class",
        "may be segmented worse",
        ".masks[0]",
    ):
        assert word in card, word
    for model in (tmp_path / "model", masks_run):
        said = refused(capsys, "adapt", model, "--images", tmp_path, "--method", "AdaBN", "--output", tmp_path / "x")
        assert said.startswith(f"dafw adapt is for classifiers, and {model} is for segmentation")
    assert not (tmp_path / "x").exists()


def of_network(
    network: SegmentationNetwork, images: list[torch.Tensor], folder: Path, form: Form = "safetensors"
) -> Pretrained:
    """An exported model of a network, whose images nothing prepares."""
    method = case(SourceOnly, kind="segmentation", network=network).make().eval()
    export(method, ("a", "b", "c"), None, images, folder, Wanted(form, about={"check images": "noise"}))
    return dafw.from_pretrained(folder)


def some(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


class Strided(torch.nn.Module):
    """A network for sides that are multiples of 4, which the network around it pads to."""

    stride = 4

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scores = torch.nn.Conv2d(3, num_classes, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scores."""
        scores: torch.Tensor = self.scores(x)
        return scores


def test_sides_need_be_no_multiples(tmp_path: Path) -> None:
    """The program pads. An image that is too small is refused in a sentence."""
    made = of_network(SegmentationNetwork(f"{__name__}.Strided"), [some(16, 19), some(21, 12)], tmp_path / "m")
    assert (made.config.shape, made.config.smallest) == ((3, 0, 0), (5, 5))
    assert made.predict([some(24, 16), some(5, 33)]).masks[1].shape == (5, 33)
    with pytest.raises(UserError, match=r"takes images of uint8 \(N, 3, H, W\) from 5 x 5 on, not .* \(1, 3, 4, 30\)"):
        made.predict(some(4, 30))
    assert "(N, 3, H, W) from 5 x 5 on" in (tmp_path / "m" / "README.md").read_text()


def test_onnx_pads_to_the_next_multiple(tmp_path: Path) -> None:
    """It rounds a negative quotient towards zero, so the program has none. The check at the export compares."""
    pytest.importorskip("onnxruntime")
    images = [some(17, 19), some(21, 13), some(16, 20)]
    made = of_network(SegmentationNetwork(f"{__name__}.Strided"), images, tmp_path / "m", "onnx")
    assert made.config.difference <= 1e-5


class PadsBySize(torch.nn.Module):
    """Layers of timm's ``tf_`` models, which pad by the size of their input."""

    stride = 4

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.second = Conv2dSame(3, 4, 3, 2), Conv2dSame(4, num_classes, 5, 2, dilation=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scores."""
        scores: torch.Tensor = self.second(self.first(x))
        return scores


def test_layers_that_pad_by_the_size_of_their_input(tmp_path: Path) -> None:
    """The check at the export compares the sizes of its images, and of an odd part of one, with the network itself."""
    images = [some(16, 19), some(21, 13), some(27, 38)]
    made = of_network(SegmentationNetwork(f"{__name__}.PadsBySize"), images, tmp_path / "m")
    assert made.config.sides == "free"
    assert made.config.difference <= 1e-5


class OneSize(torch.nn.Module):
    """A network that is for images of 12 x 16 pixels alone, and for the trial of those that make it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scores = torch.nn.Conv2d(3, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scores."""
        if x.shape[2] != 64:
            x = x.reshape(x.shape[0], 3, 12, 16)
        scores: torch.Tensor = self.scores(x)
        return scores


def test_a_network_of_one_size(tmp_path: Path) -> None:
    made = of_network(SegmentationNetwork(f"{__name__}.OneSize"), [some(12, 16)] * 2, tmp_path / "m")
    assert (made.config.shape, made.config.sides) == ((3, 12, 16), "fixed")
    with pytest.raises(UserError, match=r"takes images of uint8 \(N, 3, 12, 16\), not torch.uint8 \(1, 3, 16, 12\)"):
        made.predict(some(16, 12))
