"""The preparation of one image is that of evaluation, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from folders import make
from PIL import Image

from dafw.data.images import CorruptImage
from dafw.errors import UserError
from dafw.testing.toys import ToyData
from datamodules.digits import Digits


def folder(root: Path) -> Path:
    """Images of several shapes, kinds and sizes in two domains with two classes."""
    random = np.random.default_rng(0)
    for domain in ("art", "photo"):
        for label in ("cup", "pen"):
            inside = root / domain / label
            inside.mkdir(parents=True)
            for number, shape in enumerate(((24, 40, 3), (33, 17, 3), (64, 64, 3), (9, 9, 3), (30, 20))):
                image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
                image.save(inside / f"{number}.{'jpg' if number == 2 else 'png'}")
    return root


@pytest.mark.parametrize("options", [{}, {"fit": "squash"}, {"evaluate_whole": True}, {"cache": True}])
def test_a_folders_files(tmp_path: Path, options: dict[str, object]) -> None:
    data = make(folder(tmp_path), transductive=True, batch_size=2, **options)
    prepare, domain = data.evaluation_transform(), data.domain("photo", "test")
    (batch,) = data.evaluation_loader(domain)
    for row, index in enumerate(batch.index.tolist()):
        path = tmp_path / domain.id(index)
        assert torch.equal(prepare(path), batch.x[row])
        assert torch.equal(prepare(str(path)), batch.x[row])
        with Image.open(path) as image:
            assert torch.equal(prepare(image), batch.x[row]) or path.suffix == ".jpg"  # reduced while decoded


def test_what_cannot_be_prepared_is_named(tmp_path: Path) -> None:
    prepare = make(folder(tmp_path)).evaluation_transform()
    broken = tmp_path / "broken.png"
    broken.write_bytes((tmp_path / "art/cup/0.png").read_bytes()[:200])
    with pytest.raises(CorruptImage, match=r"broken\.png cannot be decoded"):
        prepare(broken)
    with Image.open(broken) as image, pytest.raises(CorruptImage, match="the image cannot be decoded"):
        prepare(image)
    with pytest.raises(UserError, match=r"gone\.png"):
        prepare(tmp_path / "gone.png")


def test_a_digit(tmp_path: Path) -> None:
    data = Digits("mnist", "optdigits", size=20)
    x = data.load("optdigits", "test").inputs[3]
    path = tmp_path / "digit.png"
    Image.fromarray(Digits("mnist", "optdigits").load("optdigits", "test").inputs[3][0].numpy()).save(path)
    assert torch.equal(data.evaluation_transform()(path), x)


def test_a_datamodule_that_does_not_say_how() -> None:
    with pytest.raises(UserError, match=r"ToyData does not say how an image is prepared: define evaluation_transform"):
        ToyData("a", "b").evaluation_transform()
