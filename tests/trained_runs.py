"""A checkpoint that a trainer wrote, and a run of the command on images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import TOY
from PIL import Image

from dafw.cli import main
from dafw.methods import DANN
from dafw.testing.toys import ToyData, toy_network, toy_trainer


def data(**options: Any) -> ToyData:
    return ToyData("a", "b", **{"batch_size": 8, "steps_per_epoch": 2} | options)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that a trainer wrote, in no run directory."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = toy_trainer(folder, epochs=1)
    trainer.fit(DANN(toy_network(), num_classes=3, width=8), datamodule=data())
    trainer.save_checkpoint(folder / "dann.ckpt")
    return folder / "dann.ckpt"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of images with two classes, no two sides alike."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for domain in ("art", "photo"):
        for label, tone in (("cup", 60), ("pen", 180)):
            (root / domain / label).mkdir(parents=True)
            for index in range(20):
                pixels = (tone + random.integers(0, 60, (12 + index % 3, 16, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(root / domain / label / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def arguments(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A finished run on them: the arguments of its command, the run directory last."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    options = {
        **dict(zip(TOY[::2], TOY[1::2], strict=True)),
        **{"--model": "DANN", "--data": "ImageFolderDomains", "--data.root": str(images), "--data.source": "art"},
        **{"--data.target": "photo", "--data.size": "6", "--data.resize": "8", "--data.steps_per_epoch": "2"},
        **{"--trainer.max_epochs": "1", "--run.wandb": "disabled", "--run.dir": str(folder)},
    }
    given = [word for option in options.items() for word in option]
    assert main(["fit", *given]) == 0
    return given


@pytest.fixture(scope="session")
def folder(arguments: list[str]) -> Path:
    return Path(arguments[-1])
