"""Corruptions of any datamodule: exact on any number of workers, cached, and refused where they cannot be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dafw.data.corruptions import COMMON, HELD_OUT, KINDS, corrupted
from dafw.data.roles import Split
from dafw.errors import UserError
from dafw.run.sources import sources_of
from dafw.testing.toys import ToyData
from datamodules import Corruptions, Digits

BASE: dict[str, Any] = {"base": "dafw.testing.toys.ToyData", "base_args": {"count": 10}}


def images(domain: Any) -> Tensor:
    return torch.stack([domain.inputs[index] for index in range(len(domain))])


def toy(target: Any = "fog_3", source: Any = "a", **options: Any) -> Corruptions:
    return Corruptions(source, target, **{**BASE, **options})


def test_the_domains_are_the_source_under_each_corruption() -> None:
    data = toy(["fog_3", "gaussian_noise_5"], seed=7)
    clean = ToyData("a", "b", count=10)
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        before, found = clean.load("a", split), data.load("fog_3", split)
        assert (found.name, len(found)) == ("fog_3", len(before))
        np.testing.assert_array_equal(found.labels, before.labels)
        assert found.id(2) == "fog_3/a/2"
        assert torch.equal(images(data.load("a", split)), images(before))
        expected = [
            corrupted(image.permute(1, 2, 0).numpy(), "fog", 3, scale="cifar", seed=7, name=f"a/{split}/{index}")
            for index, image in enumerate(images(before))
        ]
        assert torch.equal(images(found), torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))
    assert data.class_names == clean.class_names
    assert data.task == "a->fog_3,gaussian_noise_5"
    assert data.in_short() == [
        "a under 2 corruptions with the severities of CIFAR-10-C, 6 test images each; seed 7",
    ]


def test_every_name_and_every_group_is_known() -> None:
    data = toy(["common_5", "held_out_1"])
    assert data.target == [f"{kind}_5" for kind in COMMON] + [f"{kind}_1" for kind in HELD_OUT]
    assert set(data.domain_names) == {"a", "b", "c", *(f"{kind}_{level}" for kind in KINDS for level in range(1, 6))}


def test_the_seed_the_cache_and_the_scale() -> None:
    noisy = [
        images(toy("gaussian_noise_4", **options).load("gaussian_noise_4", "test"))
        for options in (
            {"seed": 1},
            {"seed": 1, "cache": False},
            {"seed": 9, "corruption_seed": 1},
            {"seed": 2},
            {"seed": 1, "severities": "imagenet"},
        )
    ]
    assert [torch.equal(noisy[0], other) for other in noisy] == [True, True, True, False, False]


@pytest.mark.parametrize("cache", [True, False])
def test_workers_change_no_bit(cache: bool) -> None:
    found = []
    for num_workers in (0, 2):
        data = toy("shot_noise_2", cache=cache, num_workers=num_workers, eval_batch_size=2)
        batches = list(data.evaluation_loader(data.domain("shot_noise_2", "test")))
        found.append(torch.cat([batch.x for batch in batches]))
    assert torch.equal(*found)


def test_a_changed_image_makes_another_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for shift in (0, 0, 1):
        data = toy("contrast_1")
        before = data.base.load("a", "test")
        data.base._loaded["a", "test"] = replace(before, inputs=[image + shift for image in images(before)])  # type: ignore[attr-defined]
        files.append(data.load("contrast_1", "test").inputs.file)  # type: ignore[attr-defined]
    assert files[0] == files[1] != files[2]


def test_a_folder_with_one_domain(tmp_path: Path) -> None:
    """Its images are made of files; all of them may be the test split. No other domain is needed."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.default_rng(index).integers(0, 256, (12, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    options: dict[str, Any] = {"base": "ImageFolderDomains", "root": str(tmp_path), "size": 8}
    data = Corruptions("photos", "pixelate_5", **options, base_args={"resize": 10, "split": [0.0, 0.0, 1.0]})
    data.prepare_data()
    found = data.load("pixelate_5", "test")
    assert (len(found), tuple(found.inputs[0].shape), data.class_names) == (6, (3, 8, 8), ("cat", "dog"))
    assert found.id(0) == "pixelate_5/photos/cat/0.png"
    prepared = data.evaluation_transform()(tmp_path / "photos" / "cat" / "0.png")
    assert torch.equal(prepared, data.base.load("photos", "test").inputs[0])


def test_another_domain_of_the_base_may_be_corrupted() -> None:
    data = toy("contrast_3", clean="b")
    assert torch.equal(images(data.load("a", "test")), images(ToyData("a", "b", count=10).load("a", "test")))
    labels = ToyData("a", "b", count=10).load("b", "test").labels
    np.testing.assert_array_equal(data.load("contrast_3", "test").labels, labels)
    assert toy("fog_1", source=["a", "b"], clean="b").num_sources == 2


def test_a_base_takes_the_arguments_of_its_parents() -> None:
    """The class of RotatedMNIST does not name ``size``: its parent does."""
    assert Corruptions("0", "snow_2", base="RotatedMNIST", size=20).base.size == 20  # type: ignore[attr-defined]


@pytest.mark.usefixtures("few_digits")
def test_digits_take_a_size_and_are_not_mirrored() -> None:
    data = Corruptions("mnist", "snow_2", base="Digits", size=32, augment="weak")
    assert data.load("snow_2", "test").inputs[0].shape == (3, 32, 32)
    assert isinstance(data.base, Digits)
    data.setup("fit")
    assert data.augmentation() is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"target": "fgo_3"}, 'unknown corruption "fgo": did you mean "fog"'),
        ({"target": "fog_7"}, "fog has the severities 1 to 5, and fog_7"),
        ({"target": "common"}, 'unknown corruption "common"'),
        ({"target": "common_9"}, "common_9 .* has no severity 1 to 5: say common_5"),
        ({"source": "d"}, 'unknown domain "d"'),
        ({"base": "Digit"}, 'unknown data.base "Digit": did you mean "Digits"'),
        ({"base": "nowhere.Data"}, "the module nowhere .data.base. cannot be imported"),
        ({"base": "dafw.testing.toys.ToyNet"}, "is no DomainDataModule"),
        ({"base_args": {"sizee": 3}}, "does not take data.base_args: .*sizee"),
        ({"base_args": {"seed": 3}}, "data.base_args takes no seed: give data.seed"),
        ({"size": 32}, "takes no size: leave out data.size"),
        ({"source": ["a", "b"]}, "data.clean must name the domain that is corrupted"),
        ({"severities": "tiny"}, 'unknown severities "tiny"'),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        toy(**arguments)


def test_samples_that_cannot_be_corrupted() -> None:
    for kind, said in (("segmentation", "labels of a have many parts"), ("detection", "labels of a have many parts")):
        data = toy(base_args={"kind": kind, "count": 10})
        with pytest.raises(UserError, match=said):
            data.load("fog_3", "test")
    data = toy()
    before = data.base.load("a", "test")
    for inputs, said in (
        ([image[:1] for image in images(before)], "no RGB images"),
        ([*images(before)[:-1], torch.zeros(3, 4, 6, dtype=torch.uint8)], "images of 6x6 and 4x6"),
    ):
        data.base._loaded["a", "test"] = replace(before, inputs=inputs)  # type: ignore[attr-defined]
        with pytest.raises(UserError, match=said):
            data.load("fog_3", "test")


def test_a_result_knows_the_code_of_the_corruptions_and_of_the_base() -> None:
    data = toy()
    assert data.made_of == (data.base,)
    found = sources_of([type(data), *map(type, data.made_of)])
    assert {"datamodules.corruptions", "dafw.testing.toys"} <= found.keys()
    assert {"dafw.data.corruptions", "dafw.data.corruptions.weather"} <= found.keys()


def test_the_base_is_of_its_own_class() -> None:
    """Another class of the same name would make short names of datamodules ambiguous in the same process."""
    before = set(Digits.__subclasses__())
    data = Corruptions("mnist", "fog_1", base="Digits")
    assert type(data.base) is Digits
    assert set(Digits.__subclasses__()) == before
    assert data.base.target == []
