"""Images with boxes in folders, in COCO's and PASCAL VOC's formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from boxed_folders import coco, image, voc, write_coco, write_voc
from torch import Tensor

from dafw.data.domain import Domain
from dafw.errors import UserError
from dafw.problems import Detection
from datamodules import CocoDomains, VocDomains
from datamodules.box_folders import BoxFolders


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for each test."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))


def labels(domain: Domain) -> dict[str, dict[str, Tensor]]:
    assert domain.labels is not None
    return {domain.id(i): label for i, label in enumerate(domain.labels)}


def whole(data: BoxFolders, name: str) -> dict[str, dict[str, Tensor]]:
    return {key: one for split in ("train", "val", "test") for key, one in labels(data.load(name, split)).items()}


def pair(root: Path) -> None:
    """A labelled domain ``a`` and bare images ``b``."""
    write_coco(root, "a", coco(30))
    for i in range(20):
        image(root / "b" / f"{i}.png")


# ---- COCO


def test_a_labelled_domain_and_bare_images(tmp_path: Path) -> None:
    pair(tmp_path)
    data = CocoDomains("a", "b", root=str(tmp_path), batch_size=12, steps_per_epoch=2)
    data.prepare_data()
    data.setup("fit")
    assert data.class_names == ("cat", "dog")
    assert [domain.labels is None for domain in data.train_domains] == [False, True]
    batch = next(iter(data.train_dataloader()))
    assert (batch.x.shape, batch.x.dtype) == ((24, 3, 40, 32), torch.uint8)
    assert batch.sizes is not None
    assert set(map(tuple, batch.sizes[:12].tolist())) == {(24, 32), (40, 30)}
    assert [set(one) for one in batch.y] == [{"boxes", "labels"}] * 12
    assert data.load("b", "test").labels is None
    assert data.in_short()[0].startswith("a: 30 images, 58 boxes of 2 classes, 1 image without a box; ")
    assert data.in_short()[1].startswith("b: 20 images, no labels; ")


def test_boxes_are_corners_and_follow_the_scale(tmp_path: Path) -> None:
    pair(tmp_path)
    data = CocoDomains("a", "b", root=str(tmp_path))
    found = whole(data, "a")
    assert found["a/0.png"]["boxes"].shape == (0, 4)
    assert found["a/1.png"]["boxes"].tolist() == [[2, 4, 10, 10], [5, 4, 13, 11]]
    assert found["a/1.png"]["labels"].tolist() == [0, 1]
    assert {name: one.dtype for name, one in found["a/1.png"].items() if name != "crowd"} == {
        "boxes": torch.float32,
        "labels": torch.int64,
    }
    for cache in (False, True):
        scaled = CocoDomains("a", "b", root=str(tmp_path), size={"a": 48, "b": (20, 20)}, cache=cache)
        domain = scaled.load("a", "test")
        for key, label in labels(domain).items():
            height, width = scaled.original_size(key) or (0, 0)
            pixels = domain.inputs[list(domain.ids or ()).index(key)]
            back = label["boxes"] * torch.tensor([width, height] * 2) / torch.tensor([*pixels.shape[:0:-1]] * 2)
            assert torch.allclose(back, found[key]["boxes"], atol=1e-4)
        assert scaled.load("b", "test").inputs[0].shape == (3, 20, 20)
    assert Detection().wrong_samples(scaled.load("a", "train"), 2) == []
    assert scaled.evaluation_transform()(tmp_path / "b" / "0.png").shape == (3, 20, 20)


def test_crowds_train_nothing_and_are_marked_elsewhere(tmp_path: Path) -> None:
    given = coco(30)
    for one in given["annotations"][::2]:
        one["iscrowd"] = 1
    write_coco(tmp_path, "a", given)
    image(tmp_path / "b" / "0.png")
    options: dict[str, Any] = {"classes": ["cat", "dog"], "transductive": True}
    data = CocoDomains("a", "b", root=str(tmp_path), split=(0.4, 0.3, 0.3), **options)
    for key, label in labels(data.load("a", "train")).items():
        assert label["labels"].tolist() == ([] if key == "a/0.png" else [1])
        assert "crowd" not in label
    for key, label in labels(data.load("a", "test")).items():
        assert label["crowd"].tolist() == ([] if key == "a/0.png" else [True, False])
    assert "29 boxes of 2 classes, 29 crowd or difficult, 1 image without a box" in data.in_short()[0]


def test_images_without_a_box_stay(tmp_path: Path) -> None:
    write_coco(tmp_path, "a", coco(30, empty=20))
    write_coco(tmp_path, "b", coco(30, empty=25))
    data = CocoDomains("a", "b", root=str(tmp_path), batch_size=4)
    for name, empty in (("a", 20), ("b", 25)):
        found = whole(data, name)
        assert [len(found), sum(not len(one["boxes"]) for one in found.values())] == [30, empty]
    assert ["20 images without a box" in data.in_short()[0], "25 images without" in data.in_short()[1]] == [True, True]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    write_coco(tmp_path, "a", coco(30, ("cat", "dog", "bus")))
    write_coco(tmp_path, "b", coco(30, ("Dog", "cat")))
    options: dict[str, Any] = {"root": str(tmp_path), "rename": {"Dog": "dog"}, "classes": ["dog", "cat"]}
    data = CocoDomains("a", "b", **options)
    for name, order in (("a", [1, 0]), ("b", [0, 1])):
        found = whole(data, name)
        assert found[f"{name}/1.png"]["labels"].tolist() == order
    assert "boxes of other classes: 29 bus" in data.in_short()[0]


def test_files_of_the_parts_divide_a_domain(tmp_path: Path) -> None:
    given = coco(30)
    for part, images in (("train", given["images"][:20]), ("test", given["images"][20:])):
        ids = {one["id"] for one in images}
        kept = [one for one in given["annotations"] if one["image_id"] in ids]
        write_coco(tmp_path, "a", {**given, "images": images, "annotations": kept}, f"a_{part}.json")
    image(tmp_path / "b" / "0.png")
    data = CocoDomains("a", "b", root=str(tmp_path), split=(0.5, 0.5, 0.0), transductive=True)
    assert sorted(data.load("a", "test").ids or ()) == sorted(f"a/{i}.png" for i in range(20, 30))
    assert len(data.load("a", "train")) + len(data.load("a", "val")) == 20
    assert 0 < len(data.load("a", "val")) < 20
    (tmp_path / "a_test.json").unlink()
    with pytest.raises(UserError, match=r"a_train\.json is there, and .*a_test\.json is not: give both"):
        CocoDomains("a", "b", root=str(tmp_path))


def annotation(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Changes annotation 5."""
    return lambda given: given["annotations"][3].update(values)


def entry(key: str, place: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    """Changes an image or a category."""
    return lambda given: given[key][place].update(values)


CORNERS = "annotation 5: the box with the corners"
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no list": (lambda given: given.pop("categories"), "a.json is not in COCO's format: it must have the lists images"),
    "unknown image": (annotation(image_id=99), "annotation 5: there is no image 99"),
    "unknown category": (annotation(category_id=9), "annotation 5: there is no category 9"),
    "no area": (annotation(bbox=[3, 3, 0, 5]), f"{CORNERS} 3, 3, 3, 8 has no area"),
    "outside": (annotation(bbox=[3, 3, 80, 5]), f"{CORNERS} 3, 3, 83, 8 reaches outside"),
    "no number": (annotation(bbox=[3, "x", 8, 5]), f"{CORNERS} 3, nan, 11, nan has a coordinate that is not a number"),
    "infinite": (annotation(bbox=[3, 3, float("inf"), 5]), f"{CORNERS} 3, 3, inf, 8 has a coordinate"),
    "three numbers": (annotation(bbox=[3, 3, 4]), f"{CORNERS} nan"),
    "no box": (lambda given: given["annotations"][3].pop("bbox"), "a.json, annotation 5: it has no bbox"),
    "two names": (entry("categories", 1, name="cat"), 'a.json has two categories of the name "cat"'),
    "two categories": (entry("categories", 1, id=5), "a.json lists the category id 5 twice"),
    "two images": (entry("images", 1, id=10), "a.json lists the image id 10 twice"),
    "one file twice": (entry("images", 3, file_name="0.png"), "a.json lists the image 0.png twice"),
    "two annotations": (annotation(id=4), "a.json lists the annotation id 4 twice"),
    "an odd id": (entry("images", 1, id=[1]), "a.json, entry 2 of images: id must be a number or a name, not [1]"),
    "leads out": (entry("images", 1, file_name="../b/0.png"), "a.json, image 11: ../b/0.png leads out"),
    "no boxes": (lambda given: given["annotations"].clear(), "a has no labelled box: a source needs annotations"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    change, said = WRONG[name]
    given = coco(12)
    path = write_coco(tmp_path, "a", given)
    change(given)
    path.write_text(json.dumps(given))
    image(tmp_path / "b" / "0.png")
    with pytest.raises(UserError) as caught:
        CocoDomains("a", "b", root=str(tmp_path)).prepare_data()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_and_images_that_are_broken_or_missing(tmp_path: Path) -> None:
    pair(tmp_path)
    (tmp_path / "a" / "3.png").unlink()
    with pytest.raises(UserError, match=r"a\.json lists 30 images, 1 of which are not there: .*a/3\.png"):
        CocoDomains("a", "b", root=str(tmp_path))
    image(tmp_path / "a" / "3.png", (30, 32))
    with pytest.raises(UserError, match=r"a/3\.png is 30x32 .* and .*a\.json says 24x32"):
        CocoDomains("a", "b", root=str(tmp_path)).prepare_data()
    (tmp_path / "a.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"the annotation file .*a\.json is not JSON"):
        CocoDomains("a", "b", root=str(tmp_path))
    (tmp_path / "a.json").unlink()
    with pytest.raises(
        UserError, match=r"a is a source and has no labels: there is no .*a\.json or .*annotations\.json"
    ):
        CocoDomains("a", "b", root=str(tmp_path))
    with pytest.raises(UserError, match=r"unknown data\.on_bad_box"):
        CocoDomains("a", "b", root=str(tmp_path), on_bad_box="drop")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r'unknown data\.augment "flip_crop"'):
        CocoDomains("a", "b", root=str(tmp_path), augment="flip_crop")


def test_bad_boxes_may_be_left_out_and_are_counted(tmp_path: Path) -> None:
    given = coco(12)
    for number, bbox in enumerate(([3, 3, 0, 5], [3, 3, 80, 5], [3, None, 8, 5], [3, 3, -2, 5])):
        given["annotations"][number]["bbox"] = bbox
    given["annotations"][5]["bbox"] = [-0.5, 3, 8, 5]  # a fraction of a pixel outside: cut
    write_coco(tmp_path, "a", given)
    image(tmp_path / "b" / "0.png")
    data = CocoDomains("a", "b", root=str(tmp_path), on_bad_box="skip", transductive=True)
    (said, _) = data.in_short()
    assert "a: 12 images, 18 boxes" in said
    assert "2 boxes without area" in said
    assert "1 boxes that reach outside of their image" in said
    assert "1 boxes with a coordinate that is not a number" in said
    assert "annotation 2 first" in said
    assert whole(data, "a")["a/3.png"]["boxes"][:, 0].min() == 0


def test_classes_that_differ_are_said_with_the_nearest(tmp_path: Path) -> None:
    write_coco(tmp_path, "a", coco(12, ("motorbike", "dog")))
    write_coco(tmp_path, "b", coco(12, ("motorbikes", "dog")))
    said = 'the annotations of b have no class "motorbike": did you mean "motorbikes"?'
    with pytest.raises(UserError) as caught:
        CocoDomains("a", "b", root=str(tmp_path))
    assert said in str(caught.value)
    CocoDomains("a", "b", root=str(tmp_path), rename={"motorbikes": "motorbike"})
    write_coco(tmp_path, "b", coco(12, ("motorbike", "dog", "doge")))
    with pytest.raises(UserError, match=r'class "doge" has boxes in b and none in a: did you mean "dog"\?'):
        CocoDomains("a", "b", root=str(tmp_path))
    CocoDomains("a", "b", root=str(tmp_path), classes=["dog", "motorbike"])
    (tmp_path / "b.json").write_text(json.dumps({**coco(12, ("motorbike", "dog")), "annotations": []}))
    with pytest.raises(UserError, match="the annotations of b have no box of motorbike, dog: a target without labels"):
        CocoDomains("a", "b", root=str(tmp_path))
    with pytest.raises(UserError, match=r"data\.classes must name at least one class, and each once"):
        CocoDomains("a", "b", root=str(tmp_path), classes=["dog", "dog"])


# ---- PASCAL VOC


def test_voc_counts_from_one_and_difficult_objects_are_a_crowd(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, "a", 24)
    (folder / "Annotations" / "001.xml").write_text(
        voc([("dog", (1, 1, 30, 40), 0), ("cat", (3, 4, 8, 9), 1)], (40, 30))
    )
    image(tmp_path / "b" / "0.png")
    data = VocDomains("a", "b", root=str(tmp_path), transductive=True, classes=["cat", "dog"])
    boxes = data.checked("a").boxes[1]
    assert boxes["boxes"].tolist() == [[0, 0, 30, 40], [2, 3, 8, 9]]
    assert boxes["labels"].tolist() == [1, 0]
    assert boxes["crowd"].tolist() == [False, True]
    assert data.load("b", "train").labels is None
    assert VocDomains("a", "b", root=str(tmp_path)).checked("a").boxes[1]["crowd"].tolist() == [False, True]


def test_image_sets_divide_a_domain(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, "a", 24) / "ImageSets" / "Main"
    image(tmp_path / "b" / "JPEGImages" / "0.jpg")
    folder.mkdir(parents=True)
    (folder / "trainval.txt").write_text("".join(f"{i:03}\n" for i in range(14)))
    (folder / "test.txt").write_text("".join(f"{i:03}  1\n" for i in range(14, 20)))
    data = VocDomains("a", "b", root=str(tmp_path), transductive=True, split=(0.5, 0.5, 0.0))
    assert sorted(data.load("a", "test").ids or ()) == [f"a/JPEGImages/{i:03}.jpg" for i in range(14, 20)]
    assert len(data.load("a", "train")) + len(data.load("a", "val")) == 14
    (folder / "test.txt").write_text("003\n")
    with pytest.raises(UserError, match=r"test\.txt lists 003, which is in the train part too"):
        VocDomains("a", "b", root=str(tmp_path))
    (folder / "test.txt").write_text("333\n")
    with pytest.raises(UserError, match=r"Main lists 333, and .*JPEGImages has no such image"):
        VocDomains("a", "b", root=str(tmp_path))


OBJECT = "002.xml, object"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><object>", "002.xml is not XML"),
        ("<data></data>", "002.xml is not in PASCAL VOC's format: it begins with <data>"),
        (
            voc([("cat", (1, 1, 5, 5), 0), ("cat", (5, 5, 3, 9), 0)]),
            f"{OBJECT} 2: the box with the corners 4, 4, 3",
        ),
        (voc([("cat", (1, "left", 5, 5), 0)]), f"{OBJECT} 1: the box with the corners 0, nan, 5, 5 has a coordinate"),
        (voc([("cat", (1, 1, 5, 50), 0)]), f"{OBJECT} 1: the box with the corners 0, 0, 5, 50 reaches outside"),
        (voc([("", (1, 1, 5, 5), 0)]), f"{OBJECT} 1: it has no name"),
        ("<annotation><object><name>cat</name></object></annotation>", f"{OBJECT} 1: it has no bndbox"),
        (voc([], (9, 9)), "says 9x9: one of them is of another image"),
    ],
)
def test_what_is_wrong_in_a_voc_file_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    folder = write_voc(tmp_path, "a", 9)
    (folder / "Annotations" / "002.xml").write_text(text)
    image(tmp_path / "b" / "0.png")
    with pytest.raises(UserError) as caught:
        VocDomains("a", "b", root=str(tmp_path)).prepare_data()
    assert said in str(caught.value)


def test_files_of_voc_that_have_no_partner(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, "a", 6)
    image(tmp_path / "b" / "0.png")
    notes = folder / "Annotations"
    (notes / "004.xml").rename(notes / "040.xml")
    with pytest.raises(UserError, match=r"004\.jpg has no annotation file .*004\.xml: add one; it may hold no object"):
        VocDomains("a", "b", root=str(tmp_path))
    (notes / "004.xml").write_text(voc([]))
    with pytest.raises(UserError, match=r"the annotation file .*040\.xml has no image in .*JPEGImages"):
        VocDomains("a", "b", root=str(tmp_path))
    (notes / "040.xml").unlink()
    with pytest.raises(UserError, match=r"b is a source and has no labels: there is no .*b/Annotations"):
        VocDomains("b", "a", root=str(tmp_path))
    image(folder / "JPEGImages" / "003.png")
    with pytest.raises(UserError, match=r"003\.jpg and .*003\.png have one annotation file: remove one"):
        VocDomains("a", "b", root=str(tmp_path))
