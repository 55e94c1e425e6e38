"""Label sets: which classes each side has, what a model predicts, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dafw.errors import UserError
from dafw.testing.toys import ToyData
from datamodules import Digits
from datamodules.label_sets import PRESETS, LabelSets, find_label_sets

NAMES = tuple("abcdefgh")


def test_numbers_follow_the_order_of_the_classes_and_the_targets_own_are_the_last() -> None:
    sets = LabelSets(3, 1, 2).resolve(NAMES)
    assert (sets.common, sets.source_private, sets.target_private) == (("a", "b", "c"), ("d",), ("g", "h"))
    assert sets.source == ("a", "b", "c", "d")
    assert sets.target == ("a", "b", "c", "g", "h")
    assert sets.counts == {"common": 3, "source_private": 1, "target_private": 2}


def test_lists_name_classes_and_numbers_take_from_the_rest() -> None:
    sets = LabelSets(["h", "b"], 2, ["a"]).resolve(NAMES)
    assert (sets.common, sets.source_private, sets.target_private) == (("b", "h"), ("c", "d"), ("a",))
    assert LabelSets([0, 1], 1).resolve("012").source == ("0", "1", "2")


@pytest.mark.parametrize(
    ("sets", "kind"), [((2, 0, 0), "closed"), ((2, 1, 0), "partial"), ((2, 0, 1), "open"), ((2, 1, 1), "universal")]
)
def test_kinds(sets: tuple[int, int, int], kind: str) -> None:
    assert LabelSets(*sets).resolve(NAMES).kind == kind


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (
            LabelSets(5, 2, 2),
            "5 common [+] 2 source-private [+] 2 target-private classes, and the data has 8: a, b",
        ),
        (LabelSets(6, 0, ["a", "b", "c"]), "asks for 6 common .* the data has 8, of which 3 are named"),
        (
            LabelSets(["a"], ["b", "a"]),
            '"a" is both in data.label_sets.common and in data.label_sets.source_private',
        ),
        (LabelSets(["a", "a"]), 'class "a" is twice in data.label_sets.common'),
        (LabelSets(["a", "z"]), 'unknown data.label_sets.common "z"'),
        (LabelSets(0, 2), "data.label_sets.common must have at least one class"),
        (LabelSets([], 2), "data.label_sets.common must have at least one class"),
        (LabelSets(-1), "data.label_sets.common must be 0 or more, or a list of classes, not -1"),
        (LabelSets(2, 0, None), "data.label_sets.target_private must be 0 or more, or a list of classes, not null"),
    ],
)
def test_what_does_not_fit_is_refused(sets: LabelSets, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sets.resolve(NAMES)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match=r'unknown data\.label_sets "null"'):
        find_label_sets(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r'unknown data\.label_sets "digits-univrsal": did you mean "digits-universal"'):
        find_label_sets("digits-univrsal")


OFFICE31 = [
    *(
        "back_pack",
        "bike",
        "bike_helmet",
        "bookcase",
        "bottle",
        "calculator",
        "desk_chair",
        "desk_lamp",
        "desktop_computer",
    ),
    *(
        "file_cabinet",
        "headphones",
        "keyboard",
        "laptop_computer",
        "letter_tray",
        "mobile_phone",
        "monitor",
        "mouse",
        "mug",
    ),
    *(
        "paper_notebook",
        "pen",
        "phone",
        "printer",
        "projector",
        "punchers",
        "ring_binder",
        "ruler",
        "scissors",
        "speaker",
    ),
    *("stapler", "tape_dispenser", "trash_can"),
]
VISDA = [
    *("aeroplane", "bicycle", "bus", "car", "horse", "knife"),
    *("motorcycle", "person", "plant", "skateboard", "train", "truck"),
]


@pytest.mark.parametrize("name", PRESETS)
def test_the_literatures_splits_fit_their_data(name: str) -> None:
    totals = {"office31": 31, "office-home": 65, "visda": 12, "domainnet": 345, "digits": 10}
    data = max((one for one in totals if name.startswith(one)), key=len)
    kind = name.removeprefix(f"{data}-").split("-")[0]
    names = {"office31": OFFICE31, "visda": VISDA}.get(data, [f"{number:03}" for number in range(totals[data])])
    sets = PRESETS[name].resolve(names)
    assert sets.kind == kind
    if sets.target_private and name != "visda-open-osbp":
        assert sets.target_private[-1] == names[-1]


def test_the_classes_of_office31() -> None:
    """The common classes are in Caltech-256 too. The source's own are the next ones, the target's own the last."""
    sets = PRESETS["office31-universal"].resolve(OFFICE31)
    assert " ".join(sets.common) == (
        "back_pack bike calculator headphones keyboard laptop_computer monitor mouse mug projector"
    )
    assert " ".join(sets.source_private) == (
        "bike_helmet bookcase bottle desk_chair desk_lamp desktop_computer file_cabinet letter_tray mobile_phone "
        "paper_notebook"
    )
    assert sets.target_private == tuple(name for name in OFFICE31[19:] if name != "projector")
    assert len(PRESETS["office31-partial"].resolve(OFFICE31).source_private) == 21
    assert PRESETS["office31-open-tllib"].resolve(OFFICE31).common == tuple(OFFICE31[:20])
    assert PRESETS["visda-open-osbp"].resolve(VISDA).target_private == (
        *("aeroplane", "horse", "knife", "person", "plant", "skateboard"),
    )


def toys(sets: Any, **options: Any) -> ToyData:
    data = ToyData("a", "b", label_sets=sets, **options)
    data.setup("fit")
    return data


def test_a_universal_task() -> None:
    """Classes: common one, source-private zero, target-private two; one becomes 0, zero 1, two unknown."""
    data = toys(LabelSets(["one"], ["zero"], ["two"]))
    plain = ToyData("a", "b")
    assert (data.num_classes, data.known_names, data.has_unknown) == (2, ("one", "zero"), True)
    source, target = (data.domain(name, "test") for name in "ab")
    everything = {name: np.asarray(plain.load(name, "test").labels) for name in "ab"}
    assert [data.known_names[label] for label in source.labels] == [  # type: ignore[union-attr]
        plain.class_names[label] for label in everything["a"] if plain.class_names[label] != "two"
    ]
    expected = {0: 1, 1: 0, 2: 2}
    assert list(target.labels) == [{1: 0, 2: 2}[label] for label in everything["b"] if label != 0]  # type: ignore[arg-type]
    assert {expected[label] for label in everything["a"] if label != 2} == set(source.labels)  # type: ignore[arg-type]
    kept = np.flatnonzero(everything["b"] != 0)
    assert [target.id(index) for index in range(len(target))] == [plain.load("b", "test").id(int(i)) for i in kept]


def test_training_serves_the_classes_of_each_side_and_no_label_of_the_target() -> None:
    data = toys(LabelSets(["zero"], ["one"], ["two"]), batch_size=8)
    source, target = data.train_domains
    assert target.labels is None
    labels = np.asarray(ToyData("a", "b").load("b", "train").labels)
    assert len(target) == (labels != 1).sum()
    assert set(source.labels) == {0, 1}  # type: ignore[arg-type]
    for batch in data.train_dataloader():
        assert len(batch.y) == batch.num_source == 8
        assert int(batch.y.max()) < data.num_classes
        break


def test_closed_serves_everything_as_it_is() -> None:
    data = toys("closed")
    assert data.domain("b", "test") is data.load("b", "test")
    assert (data.class_sets.kind, data.has_unknown, data.num_classes) == ("closed", False, 3)


def test_classes_that_one_side_lacks_are_named() -> None:
    class Lacking(ToyData):
        def load(self, name: str, split: Any) -> Any:
            domain = super().load(name, split)
            return domain.subset(np.flatnonzero(np.asarray(domain.labels) != 2)) if name == "b" else domain

    for sets in (LabelSets(3), LabelSets(1, 1, 1), LabelSets(2, 0, 1)):
        with pytest.raises(UserError, match='b has no sample of class "two", which data'):
            Lacking("a", "b", label_sets=sets).setup("fit")
    Lacking("a", "b", label_sets=LabelSets(2, 1)).setup("fit")
    with pytest.raises(UserError, match='b has no sample of class "two"'):
        Lacking("b", "a", label_sets=LabelSets(2, 1)).setup("fit")


def test_labels_of_many_parts_are_refused() -> None:
    """Such as masks, of which no label set chooses."""

    class Masks(ToyData):
        def load(self, name: str, split: Any) -> Any:
            domain = super().load(name, split)
            return replace(domain, labels=np.zeros((len(domain), 4, 4), dtype=np.int64))

    with pytest.raises(
        UserError, match=r"data.label_sets needs one class a sample, and those of a have labels of many"
    ):
        Masks("a", "b", label_sets=LabelSets(1)).domain("a", "train")


def test_an_oracle_run_does_not_train_on_unknown_classes() -> None:
    with pytest.raises(UserError, match=r"of which data.label_sets leaves some unknown"):
        toys(LabelSets(2, 0, 1), oracle=True)


def test_presets_of_the_digits() -> None:
    data = Digits("mnist", "optdigits", label_sets="digits-universal")
    assert data.known_names == tuple("0123456")
    assert data.class_sets.target_private == tuple("789")


def test_folders(tmp_path: Path) -> None:
    """Label sets hold for folders too, where the class names come from the folders."""
    from PIL import Image

    from datamodules import ImageFolderDomains

    for domain in ("art", "photo"):
        for number, name in enumerate(("cup", "mug", "pen")):
            (tmp_path / domain / name).mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (8, 8), (40 * number, i, 0)).save(tmp_path / domain / name / f"{i}.png")
    options: dict[str, Any] = {"root": str(tmp_path), "size": 8, "resize": 8, "batch_size": 2}
    data = ImageFolderDomains("art", "photo", label_sets=LabelSets(1, 1, 1), **options)
    data.setup("fit")
    target = data.domain("photo", "test")
    names = [target.id(index).split("/")[1] for index in range(len(target))]
    assert set(names) == {"cup", "pen"}
    assert [{0: "cup", 2: "pen"}[label] for label in target.labels] == names  # type: ignore[union-attr]
    with pytest.raises(UserError, match="the data has 3: cup, mug, pen"):
        ImageFolderDomains("art", "photo", label_sets=LabelSets(2, 1, 1), **options).setup("fit")
