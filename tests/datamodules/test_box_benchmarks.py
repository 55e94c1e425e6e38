"""Benchmarks with boxes, in generated folders of their layouts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boxed_folders import image, voc
from commands import call, refused
from PIL import Image

from dafw.errors import UserError
from dafw.problems import Detection
from datamodules import BoxBenchmarks, GlobalWheat
from datamodules.box_benchmarks import domains
from datamodules.box_layouts import WHEAT, layouts
from datamodules.wheat import ACQUISITIONS, PARTS

PENN = """# Compatible with PASCAL Annotation Version 1.00
Image filename : "PennFudanPed/PNGImages/x.png"
Objects with ground truth : 2 { "PASpersonWalking" "PASpersonStanding" }
Bounding box for object 1 "PASpersonWalking" (Xmin, Ymin) - (Xmax, Ymax) : (2, 3) - (10, 20)
Pixel mask for object 1 "PASpersonWalking" : "PennFudanPed/PedMasks/x_mask.png"
Bounding box for object 2 "PASpersonStanding" (Xmin, Ymin) - (Xmax, Ymax) : (12, 3) - (20, 20)
"""
KITTI = """Car 0.00 0 -1.5 2.00 3.00 10.00 20.00 1.6 1.7 4.0 -16.5 2.4 58.5 -1.6
Van 0.00 0 -1.5 12.00 3.00 20.00 20.00 1.6 1.7 4.0 -16.5 2.4 58.5 -1.6
DontCare -1 -1 -10 22.00 3.00 30.00 20.00 -1 -1 -1 -1000 -1000 -1000 -10
"""
AS_VOC = [("car", (3, 4, 10, 20), 0), ("person", (12, 4, 20, 20), 1)]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for each test."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def voc_folder(folder: Path, sets: dict[str, range]) -> None:
    for name, numbers in sets.items():
        text(folder / "ImageSets" / "Main" / f"{name}.txt", "".join(f"{i:06}\n" for i in numbers))
        for i in numbers:
            image(folder / "JPEGImages" / f"{i:06}.jpg")
            text(folder / "Annotations" / f"{i:06}.xml", voc(AS_VOC))


def write(root: Path) -> None:
    """A few images of each dataset: a car at 2, 3, 10, 20, and more."""
    instances = np.full((24, 32), 7, np.uint16)
    instances[3:20, 2:10], instances[3:20, 12:20], instances[3:20, 22:30] = 26000, 24001, 26  # a car, a person, cars
    for part, city in (("train", "ulm"), ("val", "lindau")):
        for number in range(10):
            name = f"{part}/{city}/{city}_{number:06}_000019"
            image(root / "cityscapes" / "leftImg8bit" / f"{name}_leftImg8bit.png")
            path = root / "cityscapes" / "gtFine" / f"{name}_gtFine_instanceIds.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(instances).save(path)
            for fog in ("0.005", "0.01", "0.02"):
                image(root / "cityscapes" / "leftImg8bit_foggy" / f"{name}_leftImg8bit_foggy_beta_{fog}.png")
    for part in ("train", "val"):
        frames: list[dict[str, Any]] = []
        for number in range(10):
            image(root / "bdd100k" / "images" / "100k" / part / f"{part}{number}.jpg")
            time = "night" if number % 2 else "daytime"
            box, other = ({"x1": left, "y1": 3, "x2": left + 8, "y2": 20} for left in (2, 12))
            labels = [{"id": "1", "category": "car", "box2d": box}, {"category": "pedestrian", "box2d": other}]
            labels += [{"category": "lane", "poly2d": []}]
            frames.append({"name": f"{part}{number}.jpg", "attributes": {"timeofday": time}, "labels": labels})
        frames[1]["labels"] = None
        text(root / "bdd100k" / "labels" / "det_20" / f"det_{part}.json", json.dumps(frames))
    for number in range(30):
        image(root / "kitti" / "training" / "image_2" / f"{number:06}.png")
        text(root / "kitti" / "training" / "label_2" / f"{number:06}.txt", KITTI)
        name = f"{'Penn' if number < 16 else 'Fudan'}Ped{number:05}"
        image(root / "PennFudanPed" / "PNGImages" / f"{name}.png")
        text(root / "PennFudanPed" / "Annotation" / f"{name}.txt", PENN)
    voc_folder(root / "Sim10k" / "VOC2012", {"trainval10k": range(30)})
    voc_folder(root / "VOCdevkit" / "VOC2007", {"trainval": range(14), "test": range(14, 20)})
    voc_folder(root / "VOCdevkit" / "VOC2012", {"train": range(8), "val": range(8, 20), "trainval": range(20)})
    for name in ("clipart", "watercolor"):
        voc_folder(root / name, {"train": range(14), "test": range(14, 20), "extra": range(20, 22)})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("boxes")
    write(found)
    return found


def test_what_is_known_is_consistent() -> None:
    for facts in layouts().values():
        assert all(how.startswith(("seen (", "recalled", "unsure")) for how in facts["provenance"].values())
        assert {"layout", "counts"} <= set(facts["provenance"])
    assert [name for name in domains() if f"``{name}``" not in (BoxBenchmarks.__doc__ or "")] == []
    assert len(ACQUISITIONS) == 47


#: By domain the number of images of the official parts, its classes, and what is a crowd's in each image.
FOUND: dict[str, tuple[dict[str, int], tuple[str, ...], list[bool]]] = {
    "cityscapes": ({"train": 10, "test": 10}, ("person", "car"), [True, False, False]),
    "foggy_cityscapes_0.02": ({"train": 10, "test": 10}, ("person", "car"), [True, False, False]),
    "foggy_cityscapes_all": ({"train": 30, "test": 30}, ("person", "car"), [True, False, False]),
    "sim10k": ({"all": 30}, ("person", "car"), [False, True]),
    "kitti": ({"all": 30}, ("person", "car"), [False, True, True]),
    "bdd100k": ({"train": 10, "test": 10}, ("person", "car"), [False, False]),
    "bdd100k_daytime": ({"train": 5, "test": 5}, ("person", "car"), [False, False]),
    "voc2007": ({"train": 14, "test": 6}, ("person", "car"), [False, True]),
    "voc2012": ({"all": 20}, ("person", "car"), [False, True]),
    "voc": ({"train": 34, "test": 6}, ("person", "car"), [False, True]),
    "clipart": ({"train": 14, "test": 6}, ("person", "car"), [False, True]),
    "watercolor": ({"train": 14, "test": 6}, ("person", "car"), [False, True]),
    "penn_fudan": ({"all": 30}, ("person",), [False, False]),
    "penn": ({"all": 16}, ("person",), [False, False]),
    "fudan": ({"all": 14}, ("person",), [False, False]),
}


@pytest.mark.parametrize("name", domains())
def test_every_dataset_is_read(root: Path, name: str) -> None:
    counts, classes, crowd = FOUND[name]
    other = (
        "fudan" if name == "penn" else "penn" if classes == ("person",) else "kitti" if name != "kitti" else "sim10k"
    )
    options: dict[str, Any] = {"root": str(root), "classes": list(classes), "split": (0.5, 0.25, 0.25)}
    data = BoxBenchmarks(name, other, **options)
    assert data.class_names == classes
    sizes = {split: len(data._indices(name, split)) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    assert sum(sizes.values()) == sum(counts.values())
    if "test" in counts:
        assert sizes["test"] == counts["test"]
    domain = data.load(name, "test")
    assert domain.labels is not None
    assert Detection().wrong_samples(domain, len(classes)) == []
    number = classes.index("car" if "car" in classes else "person")
    for label in domain.labels:
        if name == "bdd100k" and not len(label["labels"]):
            continue  # the image without labels
        assert sorted(label["crowd"].tolist()) == sorted(crowd)
        own = label["boxes"][(label["labels"] == number) & ~label["crowd"]]
        corners = [1, 2, 10, 20] if classes == ("person",) else [2, 3, 10, 20]
        assert own[0].tolist() == corners


def test_the_level_of_the_fog_is_in_the_task(root: Path) -> None:
    names = {}
    for level in ("0.02", "all"):
        data = BoxBenchmarks("cityscapes", f"foggy_cityscapes_{level}", root=str(root), split=(0.5, 0.5, 0.0))
        assert data.task == f"cityscapes->foggy_cityscapes_{level}"
        assert data.class_names == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
        names[level] = data.load(data.target[0], "test").ids or ()
    assert {name.rpartition("beta_")[2] for name in names["0.02"]} == {"0.02.png"}
    assert {name.rpartition("beta_")[2] for name in names["all"]} == {"0.02.png", "0.01.png", "0.005.png"}
    training = [{name.partition("_beta")[0] for name in data.load(data.target[0], part).ids or ()} for part in PARTS]
    assert not training[0] & training[1]  # one place is in one split


def test_classes_are_those_in_common(root: Path) -> None:
    assert BoxBenchmarks("sim10k", "cityscapes", root=str(root)).class_names == ("car", "motorcycle", "person")
    assert BoxBenchmarks("bdd100k", "kitti", root=str(root)).class_names == ("person", "rider", "car", "truck", "train")
    assert len(BoxBenchmarks("voc", "watercolor", root=str(root)).class_names) == 6
    with pytest.raises(UserError, match=r'unknown class of data\.classes "cart": did you mean "car"'):
        BoxBenchmarks("sim10k", "cityscapes", root=str(root), classes=["cart"])
    with pytest.raises(UserError, match=r'unknown domain "cityscape": did you mean "cityscapes"'):
        BoxBenchmarks("sim10k", "cityscape", root=str(root))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no folder kitti with training/image_2 and training/label_2 of kitti"):
        BoxBenchmarks("kitti", "penn", root=str(tmp_path))
    for number in range(4):
        image(tmp_path / "kitti" / "training" / "image_2" / f"{number}.png")
        text(tmp_path / "kitti" / "training" / "label_2" / f"{number}.txt", KITTI)
    text(tmp_path / "kitti" / "training" / "label_2" / "2.txt", "Car 1 2")
    with pytest.raises(UserError, match=r"2\.txt, line 1: it has 3 columns, and a box needs 8"):
        BoxBenchmarks("kitti", "penn", root=str(tmp_path))
    (tmp_path / "kitti" / "training" / "label_2" / "2.txt").unlink()
    with pytest.raises(UserError, match=r"2\.txt does not exist"):
        BoxBenchmarks("kitti", "penn", root=str(tmp_path))
    image(tmp_path / "PennFudanPed" / "PNGImages" / "PennPed1.png")
    text(tmp_path / "PennFudanPed" / "Annotation" / "PennPed1.txt", "nothing")
    with pytest.raises(UserError, match=r"PennPed1\.txt has no bounding box"):
        BoxBenchmarks("penn", "kitti", root=str(tmp_path))


# ---- GWHD


def wheat(root: Path, kind: str = "competition", numbered: bool = False) -> Path:
    """Two acquisitions in each list, with four images each; the first image of each has no box."""
    folder = root / "gwhd_2021"
    for part, first in (("train", 0), ("val", 20), ("test", 30)):
        lines = ["image_name,BoxesString,domain"]
        for place in range(8):
            number = first + place // 4
            image(folder / "images" / f"{part}{place}.png")
            boxes = "2 3 10 20;12 3 20 20" if place % 4 else "no_box"
            lines.append(f"{part}{place}.png,{boxes},{number if numbered else ACQUISITIONS[number]}")
        text(folder / f"{kind}_{part}.csv", "\n".join(lines))
    return folder


@pytest.mark.parametrize("numbered", [False, True])
def test_wheat_has_a_domain_for_each_acquisition(tmp_path: Path, numbered: bool) -> None:
    folder = wheat(tmp_path, "official" if numbered else "competition", numbered)
    data = GlobalWheat("train", "test", root=str(tmp_path if numbered else folder), batch_size=1)
    assert data.source == ["Arvalis_1", "Arvalis_2"]
    assert data.target == list(ACQUISITIONS[30:32])
    test = data.load(data.target[0], "test")
    assert (len(test), len(data.load(data.target[0], "train"))) == (4, 4)
    assert test.labels is not None
    assert [label["boxes"].tolist() for label in test.labels][:2] == [[], [[2, 3, 10, 20], [12, 3, 20, 20]]]
    assert GlobalWheat(["Arvalis_1"], ["val", "UQ_5"], root=str(folder)).target[:2] == list(ACQUISITIONS[20:22])
    with pytest.raises(UserError, match='unknown domain "Arvalis_3"'):
        GlobalWheat("Arvalis_3", "test", root=str(folder))


def test_wrong_lists_of_wheat(tmp_path: Path) -> None:
    folder = wheat(tmp_path)
    text(folder / "competition_val.csv", "image_name,BoxesString,domain\nval0.png,1 2 3,Arvalis_1")
    with pytest.raises(UserError, match=r'competition_val\.csv, line 2: box 1 must be four numbers, not "1 2 3"'):
        GlobalWheat("train", "test", root=str(folder))
    text(folder / "competition_val.csv", "image_name,BoxesString,domain\nval99.png,no_box,Arvalis_1")
    with pytest.raises(UserError, match=r"competition_val\.csv, line 2: val99\.png is not in"):
        GlobalWheat("train", "test", root=str(folder))
    (folder / "competition_val.csv").unlink()
    with pytest.raises(UserError, match=r"there is no .*competition_val\.csv or .*official_val\.csv"):
        GlobalWheat("train", "test", root=str(folder))


# ---- the command


def test_the_list_and_the_check(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = call(capsys, "data", "list").out
    for name, facts in layouts().items():
        assert f"{name} (" in listed
        assert facts["paper"] in listed
    assert "voc2007 (BoxBenchmarks): 9,963 images, 20 classes of boxes: train 5,011, test 4,952" in listed
    assert "penn_fudan (BoxBenchmarks): 170 images, 345 boxes, 1 class of boxes: all 170" in listed
    code, out, _ = call(capsys, "data", "check", "kitti", "--root", root)
    assert code == 1
    assert "all: 30 of 7,481 images, 90 boxes (30 crowd or difficult), 0 images without a box; 7,451 images" in out
    assert "kitti is not complete\nhow that is known, layout: seen" in out
    _, out, _ = call(capsys, "data", "check", "foggy_cityscapes_all", "--root", root)
    assert "test: 30 of 1,500 images, 90 boxes (30 crowd or difficult)" in out
    _, out, _ = call(capsys, "data", "check", "cityscapes", "--boxes", "--root", root)
    assert "test: 10 of 500 images, 30 boxes (10 crowd or difficult)" in out
    monkeypatch.setitem(layouts()["voc2007"], "counts", {"train": 14, "test": 6})
    assert call(capsys, "data", "check", "voc2007", "--root", root).out.endswith("voc2007 is complete\n")
    wheat(tmp_path)
    _, out, _ = call(capsys, "data", "check", "gwhd_2021", "--root", tmp_path)
    assert "train: 8 of 3,655 images, 12 boxes, 2 images without a box; 3,647 images" in out
    assert "unknown benchmark with boxes" in refused(capsys, "data", "check", "PACS", "--boxes", "--root", root)
    assert "holds no folder VOCdevkit" in refused(capsys, "data", "check", "voc2007", "--root", tmp_path)


@pytest.mark.parametrize("name", [name for name, facts in layouts().items() if facts["kind"] != WHEAT])
def test_every_dataset_is_checked(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "data", "check", name, "--boxes", "--root", root)
    assert code == 1, "a few images are no complete dataset"
    assert f"{name} is not complete\nhow that is known, layout: " in out
    parts = [line for line in out.splitlines() if " of " in line and " images, " in line]
    assert len(parts) == len(layouts()[name]["counts"])
