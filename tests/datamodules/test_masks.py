"""Folders of images with masks."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dafw.data import cache as cache_module
from dafw.data.dense import DenseRows
from dafw.errors import UserError
from dafw.methods import SourceOnly
from dafw.nn.segmenter import TinySegmenter
from dafw.problems import Segmentation
from dafw.testing.toys import toy_trainer
from datamodules import MaskFolders

NAMES = ["ground", "thing"]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for each test."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))


def save(path: Path, pixels: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def write(root: Path, domain: str, count: int = 12, *, labelled: bool = True, side: int = 20, inside: str = "") -> None:
    """Images (side, side + 4) or (side + 2, side) whose mask is where the red channel is above 127."""
    rng = np.random.default_rng(sum(domain.encode()))
    for index in range(count):
        size = (side, side + 4) if index % 2 else (side + 2, side)
        mask = np.zeros(size, np.uint8)
        mask[4:12, 4:12] = 1
        pixels = rng.integers(0, 100, (*size, 3))
        pixels[..., 0] += 140 * mask
        save(root / domain / "images" / inside / f"{index}.png", pixels)
        if labelled:
            save(root / domain / "masks" / inside / f"{index}.png", mask)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for domain in ("a", "b"):
        write(tmp_path / "data", domain)
    return tmp_path / "data"


def make(root: Path, source: Any = "a", target: Any = "b", **options: Any) -> MaskFolders:
    given = {"classes": NAMES, "batch_size": 2, "split": (0.5, 0.25, 0.25), **options}
    return MaskFolders(source, target, root=str(root), **given)


def refused(root: Path, **options: Any) -> str:
    """What is said before the first step."""

    def prepare() -> None:
        data = make(root, **options)
        data.prepare_data()
        data.setup("fit")
        data.evaluations("validate")

    with pytest.raises(UserError) as error:
        prepare()
    return str(error.value)


def agree(image: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether a mask is where its image says, besides pixels without a label."""
    return bool((((image[0] > 127) == (mask == 1)) | (mask == 255)).all())


def test_images_and_masks_are_served_as_they_are(root: Path) -> None:
    data = make(root)
    parts = {split: data.load("a", split) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 12
    for domain in parts.values():
        assert domain.labels is not None
        for image, mask in zip(domain.inputs, domain.labels, strict=True):
            assert image.shape[1:] == mask.shape
            assert agree(image, mask)
    names = {one.id(index) for one in parts.values() for index in range(len(one))}
    assert names == {f"a/images/{index}.png" for index in range(12)}
    assert data.class_names == tuple(NAMES)
    assert data.class_pixels("a", "train").tolist()[0][1] == 64


def test_training_batches_are_crops_of_image_and_mask_together(root: Path) -> None:
    batches = []
    for cache in (False, True):
        data = make(root, crop=[12, 10], augment="crop", cache=cache, seed=3)
        data.prepare_data()
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert batch.x.shape == (4, 3, 12, 10)
        assert (batch.y.shape, batch.num_source) == ((2, 12, 10), 2)
        assert all(agree(image, mask) for image, mask in zip(batch.x, batch.y, strict=False))
        assert data.train_domains[1].labels is None
        batches.append(batch)
    assert all(torch.equal(*(getattr(batch, part) for batch in batches)) for part in ("x", "y"))
    whole = make(root, augment=v2.RandomHorizontalFlip(1.0))
    whole.setup("fit")
    batch = next(iter(whole.train_dataloader()))
    assert all(agree(image, mask) for image, mask in zip(batch.x, batch.y, strict=False))
    scaled = make(root, crop=12, augment="flip_crop")
    scaled.setup("fit")
    assert next(iter(scaled.train_dataloader())).y.shape == (2, 12, 12)


def test_a_crop_decodes_nothing_once_the_cache_is_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, crop=8, cache=True).prepare_data()
    read: list[int] = []
    window = cache_module.CachedRows.view
    with monkeypatch.context() as patch:
        patch.setattr(DenseRows, "make", lambda *_: pytest.fail("something was decoded"))
        patch.setattr(cache_module.CachedRows, "__getitem__", lambda *_: pytest.fail("a whole image was copied"))
        patch.setattr(cache_module.CachedRows, "view", lambda self, index: read.append(index) or window(self, index))
        data = make(root, crop=8, cache=True)
        data.setup("fit")
        read.clear()
        batch = next(iter(data.train_dataloader()))
    assert len(read) == 6
    batch.x.zero_()
    again = pickle.loads(pickle.dumps(make(root, crop=8, cache=True).load("a", "train")))
    assert all(agree(*pair) for pair in zip(again.inputs, again.labels, strict=True))


def test_sizes(root: Path) -> None:
    def shapes(**options: Any) -> set[tuple[int, ...]]:
        return {tuple(one.shape) for one in make(root, **options).load("a", "train").inputs}

    assert shapes(size=10) == {(3, 11, 10), (3, 10, 12)}
    assert shapes(size=[16, 8]) == {(3, 16, 8)}
    assert shapes(size={"b": 10}) == {(3, 22, 20), (3, 20, 24)}
    domain = make(root, size=[40, 48]).load("a", "train")
    assert domain.labels is not None
    assert set(domain.labels[0].unique().tolist()) == {0, 1}
    batch = next(iter(make(root).evaluation_loader(make(root).load("a", "test"))))
    assert batch.sizes is not None
    prepare = make(root, size=10).evaluation_transform()
    assert prepare(root / "a" / "images" / "1.png").shape == (3, 10, 12)
    assert make(root, size=10).original_size("a/images/1.png") == (20, 24)
    assert make(root, crop=12).view("weak")(prepare(root / "a" / "images" / "1.png")).shape == (3, 12, 12)
    with pytest.raises(UserError, match=r'the view "weak" .* needs a square data\.crop'):
        make(root, crop=[12, 10]).view("weak")


def test_splits_are_functions_of_the_path(root: Path) -> None:
    def ids(**options: Any) -> list[set[str]]:
        data = make(root, **options)
        return [set(map(str, data.load("b", split).ids or ())) for split in ("train", "val", "test")]

    before = ids()
    write(root, "b", 15)
    assert all(old <= new for old, new in zip(before, ids(), strict=True))
    assert ids(split_seed=1) != ids()
    every = set.union(*ids())
    assert ids(transductive=True)[::2] == [every, every]
    office = ids(protocol="office")
    assert office[0] == office[2] == every


def test_a_target_needs_no_masks(root: Path, tmp_path: Path) -> None:
    write(root, "c", labelled=False)
    for index in range(6):
        save(root / "bare" / f"{index}.jpg", np.full((20, 20, 3), 40 * index))
    for target in ("c", "bare"):
        data = make(root, target=target)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert (len(batch), batch.num_source) == (4, 2)
        assert data.load(target, "test").labels is None
        assert data.tested_targets == []
    assert "c: 12 images, no masks" in make(root, target="c").in_short()[1]
    with pytest.raises(UserError, match="c has no labels, so that nothing can be learnt from it"):
        make(root, source="c", target="a").setup("fit")


def test_palettes_colours_and_suffixes(root: Path) -> None:
    for index in range(12):
        path = root / "a" / "masks" / f"{index}.png"
        mask = np.asarray(Image.open(path))
        shown = Image.fromarray(mask, "P")
        shown.putpalette([9, 9, 9, 128, 64, 128])
        path.unlink()
        shown.save(path.with_name(f"{index}_mask.png"))
    for path in (root / "b" / "masks").iterdir():
        path.rename(path.with_name(path.stem + "_mask.png"))
    ids = make(root, mask_suffix="_mask")
    (root / "classes.yaml").write_text('"#090909": ground\n"#804080": thing\n')
    for path in (root / "b" / "masks").iterdir():
        save(path, np.asarray([[9, 9, 9], [128, 64, 128]], np.uint8)[np.asarray(Image.open(path))])
    colours = make(root, mask_suffix="_mask", classes=None)
    for name, data in (("a", ids), ("a", colours), ("b", colours)):
        domain = data.load(name, "train")
        assert domain.labels is not None
        assert all(agree(*pair) for pair in zip(domain.inputs, domain.labels, strict=True))
    assert "has colours, and the map of classes has numbers" in refused(root, mask_suffix="_mask")


def test_each_domain_may_have_a_map_of_its_own(root: Path) -> None:
    (root / "a" / "classes.yaml").write_text("0: ground\n1: thing\n")
    (root / "b" / "classes.yaml").write_text("thing: [1]\nground: [0]\n")
    data = make(root, classes=None)
    domain = data.load("b", "train")
    assert domain.labels is not None
    assert all(agree(*pair) for pair in zip(domain.inputs, domain.labels, strict=True))
    (root / "b" / "classes.yaml").write_text("0: ground\n1: person\n")
    assert 'lacks the class "thing", which other domains than b have' in refused(root, classes=None)


def test_volumes_are_split_by_subject(tmp_path: Path) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "scans"
    for domain in ("mr", "ct"):
        (root / domain).mkdir(parents=True)
        for number in range(12):
            masks = np.zeros((3, 16, 18), np.uint8)
            masks[:, 4:9, 4:9] = 1
            images = (rng.random((3, 16, 18)) * 100 + 1000.0 * masks).astype(np.float32)
            np.savez(root / domain / f"{number}.npz", images=images, masks=masks, subject=f"s{number // 2}")
    data = make(root, "mr", "ct", crop=8)
    data.prepare_data()
    parts = [data.load("mr", split) for split in ("train", "val", "test")]
    subjects = [set(part.volumes or ()) for part in parts]
    assert len(set.union(*subjects)) == sum(map(len, subjects)) == 6
    assert sum(map(len, parts)) == 36
    domain = data.load("mr", "test")
    assert domain.labels is not None
    assert all(agree(*pair) for pair in zip(domain.inputs, domain.labels, strict=True))
    assert domain.id(0).startswith("mr/")
    assert data.original_size(domain.id(0)) is None
    np.savez(root / "ct" / "0.npz", images=np.zeros((3, 16, 18)))
    with pytest.raises(UserError, match=r"ct/0\.npz has no masks, and .*npz has"):
        make(root, "mr", "ct")
    np.savez(root / "ct" / "0.npz", images=np.zeros((3, 16, 18)), masks=np.zeros((2, 16, 18), np.uint8))
    with pytest.raises(UserError, match=r"0\.npz has 3 slices and masks of 2"):
        make(root, "mr", "ct")
    np.savez(root / "ct" / "0.npz", masks=np.zeros((2, 16, 18), np.uint8))
    with pytest.raises(UserError, match=r'0\.npz holds no array "images"'):
        make(root, "mr", "ct")


def test_images_of_one_folder_are_of_one_subject(tmp_path: Path) -> None:
    for domain in ("a", "b"):
        for subject in range(8):
            write(tmp_path, domain, 2, inside=f"p{subject}")
    data = make(tmp_path, subjects=True)
    parts = [data.load("a", split) for split in ("train", "val", "test")]
    subjects = [{name.rpartition("/")[0] for name in part.ids or ()} for part in parts]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 8


@pytest.mark.parametrize(
    ("damage", "options", "said"),
    [
        ("number", {}, r"3 pixels of the mask .*a/masks/4\.png have the id 7, which data\.classes does not name"),
        ("size", {}, r"the image .*a/images/5\.png is 20x24 .* and its mask .*a/masks/5\.png is 20x20"),
        ("no mask", {}, r"the image .*a/images/3\.png has no mask in .*a/masks: add or remove it"),
        ("no image", {}, r"the mask .*a/masks/3\.png has no image in .*a/images: add or remove it"),
        ("no label", {}, r"no pixel of the \d masks in the train split of a has a label"),
        ("", {"crop": 21}, r"data\.crop 21x21 is larger than the image .*/images/\d+\.png, which is 2\dx2\d"),
        (
            "",
            {"crop": 12, "size": 10},
            r"data\.crop 12x12 is larger than the image .*, which is 1\dx1\d after data\.size",
        ),
        ("", {"classes": ["a", "a"]}, r'data\.classes names "a" twice'),
        ("", {"classes": ["ground"]}, r"have the id 1, which data\.classes does not name"),
        ("", {"classes": None}, r"data\.classes must name the classes of the masks, or .*classes\.yaml"),
        ("", {"augment": "strong"}, r'data\.augment "strong" is not for masks'),
        ("", {"augment": "crop"}, r"data\.augment crop needs a data\.crop"),
        ("", {"augment": "flip_crop", "crop": [8, 9]}, r"data\.augment flip_crop needs a square data\.crop"),
        ("", {"crop": 0}, r"data\.crop must be at least 1 pixel"),
        ("", {"size": {"c": 9}}, r'unknown domain of data\.size "c"'),
        ("", {"subjects": True}, r"data\.subjects needs a folder of images for each subject"),
        ("", {"split": (1.0, 0.0, 0.0)}, r"none of the 12 images of b is in its test split"),
        ("broken", {}, r"the mask .*a/masks/2\.png cannot be decoded"),
        ("gone", {}, r"the domain folder .*a holds no images"),
    ],
)
def test_wrong_data_is_one_sentence(root: Path, damage: str, options: dict[str, Any], said: str) -> None:
    masks = root / "a" / "masks"
    if damage == "number":
        mask = np.array(Image.open(masks / "4.png"))
        mask[0, :3] = 7
        save(masks / "4.png", mask)
    elif damage == "size":
        save(masks / "5.png", np.zeros((20, 20)))
    elif damage == "no mask":
        (masks / "3.png").unlink()
    elif damage == "no image":
        (root / "a" / "images" / "3.png").unlink()
    elif damage == "no label":
        for path in masks.iterdir():
            save(path, np.full(np.asarray(Image.open(path)).shape, 255))
    elif damage == "broken":
        (masks / "2.png").write_bytes((masks / "2.png").read_bytes()[:60])
    elif damage == "gone":
        for path in (root / "a" / "images").iterdir():
            path.unlink()
    text = refused(root, **options)
    assert re.search(said, text)
    assert "\n" not in text


def test_odd_samples_train_on(root: Path, tmp_path: Path) -> None:
    """A class that a batch lacks, a mask without a label, and images of one pixel give no nan."""
    for index in range(4):
        save(root / "a" / "images" / f"tiny{index}.png", np.zeros((1, 1, 3)))
        save(root / "a" / "masks" / f"tiny{index}.png", np.full((1, 1), 255 * (index % 2)))
    for path in sorted((root / "a" / "masks").iterdir())[:6]:
        save(path, np.full(np.asarray(Image.open(path)).shape, 255 if path.stem < "2" else 0))
    data = make(root, classes=["ground", "thing", "nowhere"], steps_per_epoch=8, eval_batch_size=3)
    method = SourceOnly(TinySegmenter(), problem=Segmentation(), num_classes=3, lr=0.01)
    trainer = toy_trainer(tmp_path, epochs=1)
    trainer.fit(method, datamodule=data)
    assert all(bool(parameter.isfinite().all()) for parameter in method.parameters())
    assert np.isfinite(method.history[-1]["validators"]["source_loss"])
    trainer.test(method, datamodule=data, verbose=False)
    found = method.evaluator.test["b"]
    assert np.isfinite([found["miou"], found["mdice"], found["iou/thing"]]).all()
    assert np.isnan(found["iou/nowhere"])


def test_volumes_have_a_dice_of_their_own(tmp_path: Path) -> None:
    for domain in ("mr", "ct"):
        (tmp_path / domain).mkdir()
        for number in range(10):
            masks = np.zeros((2, 16, 16), np.uint8)
            masks[:, 4:9, 4:9] = 1
            np.savez(tmp_path / domain / f"{number}.npz", images=(masks * 200).astype(np.uint8), masks=masks)
    data = make(tmp_path, "mr", "ct", steps_per_epoch=2)
    method = SourceOnly(TinySegmenter(), problem=Segmentation(), num_classes=2, lr=0.01)
    trainer = toy_trainer(tmp_path, epochs=1)
    trainer.fit(method, datamodule=data)
    trainer.test(method, datamodule=data, verbose=False)
    found = method.evaluator.test["ct"]
    assert {"mdice_volume", "dice_volume/ground", "dice_volume/thing"} <= set(found)
    assert 0 <= found["mdice_volume"] <= 1
