"""The size of images is said once, and every datamodule takes the same augmentations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from commands import QUICK, call, refused
from torchvision.transforms import v2

from dafw.data import ArrayImages, Domain
from dafw.data.augment import Word
from dafw.data.transforms import AUGMENTATIONS
from dafw.errors import UserError
from dafw.run.config import parse, resolved_config
from dafw.testing.toys import ToyData, toy_trainer
from datamodules import Digits, ImageFolderDomains

DIGITS = ("--model", "SourceOnly", "--data", "Digits", "--data.source", "mnist", "--data.target", "optdigits")


def input_size(*arguments: object) -> int | None:
    cli = parse([*DIGITS, *map(str, arguments)])
    found: int | None = resolved_config(cli)["model"]["init_args"]["network"]["init_args"]["input_size"]
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), None),
        (("--data.size", 20), 20),
        (("--data.size", 28), None),
        (("--data.size", 28, "--model.network.backbone", "svhn_net"), 28),
        (("--data.size", 20, "--model.network.input_size", 24), 24),
        (("--data.size", 20, "--model.network.backbone_args", '{"dropout": 0.5}'), 20),
        (("--data.size", 20, "--model.network.backbone", "dafw.testing.toys.ToyNet"), None),
        (("--data.size", 32, "--model.network.backbone", "resnet18"), None),
    ],
)
def test_the_network_follows_the_size_of_the_data(arguments: tuple[object, ...], expected: int | None) -> None:
    assert input_size(*arguments) == expected


def test_a_size_that_a_base_class_declares() -> None:
    """The turned digits take ``size`` through the arguments of their base class."""
    turned = ("--model", "ERM", "--data", "RotatedMNIST", "--data.source", "[15,30]", "--data.target", "0")
    assert input_size(*turned) is None
    assert input_size(*turned, "--data.size", 20) == 20


def test_a_transformer_of_timm_follows_too() -> None:
    backbone = ("--model.network.backbone", "vit_tiny_patch16_224")
    small = ("--model.network.backbone_args", '{"depth": 1, "embed_dim": 12}')
    assert input_size("--data.size", 32, *backbone, *small) == 32
    other = json.dumps({"depth": 1, "embed_dim": 12, "dynamic_img_size": True})
    assert input_size("--data.size", 32, *backbone, "--model.network.backbone_args", other) is None


@pytest.mark.usefixtures("few_digits")
def test_a_size_alone_trains(capsys: pytest.CaptureFixture[str]) -> None:
    steps = ("--data.steps_per_epoch", 1, "--trainer.max_epochs", 1, "--trainer.accelerator", "cpu")
    done = call(capsys, "fit", *DIGITS, "--data.size", 20, "--data.batch_size", 4, *steps, "--run.plots", "false")
    assert done.code == 0, done.err


def same(image: torch.Tensor) -> torch.Tensor:
    return image


FUNCTIONS: list[Any] = [same, v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(6, 1)]), torch.nn.Identity()]


def folder(augment: Any, root: Path) -> ImageFolderDomains:
    from PIL import Image

    for name in ("a", "b"):
        for label in ("one", "two"):
            (root / name / label).mkdir(parents=True)
            for index in range(12):
                pixels = np.full((8, 8, 3), 20 * index, np.uint8)
                Image.fromarray(pixels).save(root / name / label / f"{index}.png")
    return ImageFolderDomains("a", "b", root=str(root), size=6, resize=8, augment=augment, batch_size=2)


def toys(augment: Any, root: Path) -> ToyData:
    return ToyData("a", "b", augment=augment, batch_size=2)


def digits(augment: Any, root: Path) -> Digits:
    return Digits("optdigits", "mnist", size=8, augment=augment, batch_size=2)


@pytest.mark.parametrize(
    "augment", [*AUGMENTATIONS, *FUNCTIONS], ids=lambda one: one if isinstance(one, str) else type(one).__name__
)
@pytest.mark.parametrize(("make", "side"), [(toys, 6), (digits, 8)], ids=["own", "digits"])
def test_every_datamodule_takes_words_and_functions(
    make: Callable[[Any, Path], Any], side: int, augment: Any, tmp_path: Path
) -> None:
    data = make(augment, tmp_path)
    data.trainer = toy_trainer(tmp_path)
    data.setup("fit")
    if augment is FUNCTIONS[1]:
        side = 6
    assert next(iter(data.train_dataloader())).x.shape[1:] == (3, side, side)


@pytest.mark.parametrize("augment", ["crop", v2.Compose([v2.CenterCrop(6)])], ids=str)
def test_a_folder_takes_a_function_too(augment: Any, tmp_path: Path) -> None:
    data = folder(augment, tmp_path)
    data.trainer = toy_trainer(tmp_path)  # type: ignore[assignment]
    data.setup("fit")
    assert next(iter(data.train_dataloader())).x.shape[1:] == (3, 6, 6)


def test_no_word_mirrors_digits() -> None:
    data = Digits("optdigits", "mnist", size=8, augment="weak")
    data.train_domains = [data.load("optdigits", "train")]
    made: Any = data.augmentation()
    assert not any(isinstance(part, v2.RandomHorizontalFlip) for part in made.transforms)


def test_a_word_is_for_square_images() -> None:
    data = ToyData("a", "b", augment="weak")
    data.train_domains = [Domain("a", ArrayImages(np.zeros((3, 4, 6, 3), np.uint8)), np.arange(3))]
    with pytest.raises(UserError, match=r'data\.augment "weak" is for square images, and a sample of a is 3x4x6'):
        data.augmentation()


def test_the_parser_knows_all_words() -> None:
    assert set(get_args(Word)) == set(AUGMENTATIONS)


@pytest.mark.parametrize("given", ["none", "weak", "torchvision.transforms.v2.RandomHorizontalFlip"])
def test_an_augmentation_is_written_as_it_was_given(given: str) -> None:
    cli = parse([*DIGITS, "--data.augment", given])
    written = resolved_config(cli)["data"]["init_args"]["augment"]
    assert given in (written, written["class_path"] if isinstance(written, dict) else "")


COMPOSE = "torchvision.transforms.v2.Compose"


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        (COMPOSE, {"transforms": ["os.system"]}),
        (COMPOSE, {"transforms": [{"class_path": COMPOSE, "init_args": {"transforms": ["builtins.print"]}}]}),
        ("torchvision.transforms.v2.Lambda", {"lambd": "os.system"}),
        ("torchvision.transforms.v2.RandomApply", {"transforms": ["subprocess.call"]}),
    ],
)
def test_no_function_hides_in_a_transform(
    path: str, arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given = json.dumps({"class_path": path, "init_args": arguments})
    said = refused(capsys, "fit", "--model", "SourceOnly", *QUICK, "--data.augment", given)
    assert said.startswith("data.augment takes a transform of torchvision.transforms.v2 or a torch.nn.Module, not ")


def test_transforms_within_a_transform(capsys: pytest.CaptureFixture[str]) -> None:
    turn = {"class_path": "torchvision.transforms.v2.RandomRotation", "init_args": {"degrees": 5}}
    inner = ["torchvision.transforms.v2.RandomHorizontalFlip", turn]
    given = json.dumps({"class_path": COMPOSE, "init_args": {"transforms": inner}})
    done = call(capsys, "fit", "--model", "SourceOnly", *QUICK, "--data.augment", given)
    assert done.code == 0, done.err
