"""Office-31, Office-Caltech, ImageCLEF-DA, VisDA-2017, traffic signs and SynNumbers in their official layouts."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import stand_ins
from scipy.io import savemat

import datamodules
from dafw.errors import UserError
from datamodules.layouts import benchmarks, list_domain


def make(name: str, root: Path, source: str, target: str, **options):
    small = {"size": 8, "resize": 10, "batch_size": 2}
    return getattr(datamodules, name)(source, target, **{"root": str(root), **small, **options})


def ids(data, name: str, split: str) -> set[str]:
    return set(data.load(name, split).ids)


@pytest.mark.parametrize("inner", ["images", ""])
@pytest.mark.parametrize("home", ["", "domain_adaptation_images"])
def test_office31_with_and_without_the_folder_images(tmp_path: Path, inner: str, home: str) -> None:
    stand_ins.office(tmp_path / home, inner=inner)
    data = make("Office31", tmp_path, "amazon", "webcam")
    assert data.class_names == ("back_pack", "bike", "bike_helmet")
    assert data.class_counts()["amazon"] == {"back_pack": 6, "bike": 6, "bike_helmet": 6}
    every = ids(data, "webcam", "train")
    assert len(every) == 18
    assert ids(data, "webcam", "test") == every, "the protocol of the Office papers is the default"
    assert not data.holds_out_source
    data.setup("fit")
    assert next(iter(data.train_dataloader())).x.shape == (4, 3, 8, 8)
    divided = make("Office31", tmp_path, "amazon", "webcam", protocol="domainbed")
    assert ids(divided, "webcam", "train") < every


def test_office31_by_the_names_of_its_label_sets(tmp_path: Path) -> None:
    stand_ins.office(tmp_path, classes=benchmarks()["Office31"].classes, count=1)
    data = make("Office31", tmp_path, "amazon", "webcam", label_sets="office31-universal")
    assert (len(data.class_sets.common), len(data.class_sets.source), len(data.class_sets.target)) == (10, 20, 21)
    assert make("Office31", tmp_path, "dslr", "webcam").class_names == benchmarks()["Office31"].classes


def test_wrong_classes_and_labels_that_differ(tmp_path: Path) -> None:
    stand_ins.office(tmp_path)
    (tmp_path / "amazon" / "images" / "bike").rename(tmp_path / "amazon" / "images" / "bikes")
    with pytest.raises(UserError, match=r'Office31 has no class "bikes", which amazon in .* has: see dafw data check'):
        make("Office31", tmp_path, "amazon", "webcam")
    (tmp_path / "amazon" / "images" / "bikes").rename(tmp_path / "amazon" / "images" / "mug")
    data = make("Office31", tmp_path, "amazon", "webcam")
    with pytest.raises(UserError, match=r"(mug|bike)") as refused:
        data.setup("fit")
    assert {"amazon", "webcam"} & set(str(refused.value).replace(",", " ").replace('"', " ").split())


def test_office_caltech_in_two_spellings(tmp_path: Path) -> None:
    stand_ins.office(tmp_path, "OfficeCaltech", inner="")
    for old, new in (("bike", "touring-bike"), ("calculator", "Calculator")):
        (tmp_path / "caltech" / old).rename(tmp_path / "caltech" / new)
    data = make("OfficeCaltech", tmp_path, "amazon", "caltech")
    assert data.class_counts()["caltech"] == {"back_pack": 6, "bike": 6, "calculator": 6}


@pytest.mark.parametrize("absolute", [False, True])
def test_imageclef_by_its_lists(tmp_path: Path, absolute: bool) -> None:
    stand_ins.image_clef(tmp_path / "image_CLEF", absolute=absolute)
    data = make("ImageCLEF", tmp_path, "i", "p")
    assert data.class_names == benchmarks()["ImageCLEF"].classes
    assert set(data.class_counts()["p"].values()) == {4}
    assert data.load("i", "train").ids[0] == "i/000_0000.jpg"
    (tmp_path / "image_CLEF" / "i" / "000_0000.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of i's images are not in .*, i/000_0000\.jpg first: see dafw data check"):
        make("ImageCLEF", tmp_path, "i", "p")
    listing = next((tmp_path / "image_CLEF" / "list").glob("p*.txt"))
    listing.write_text("p/000_0000.jpg 12\n")
    with pytest.raises(UserError, match=r'line 1: expected "path number" with a number from 0 to 11, not "p/000_0000'):
        make("ImageCLEF", tmp_path, "c", "p")
    for path in (tmp_path / "image_CLEF" / "list").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"holds no images of i: dafw data check ImageCLEF"):
        make("ImageCLEF", tmp_path, "i", "p")


def test_imageclef_in_folders_of_classes(tmp_path: Path) -> None:
    for domain in "IP":
        for label in ("aeroplane", "bike"):
            for index in range(3):
                stand_ins.picture(tmp_path / domain / label / f"{index}.jpg")
    assert make("ImageCLEF", tmp_path, "i", "p").class_counts()["i"] == {"aeroplane": 3, "bike": 3}


def test_visda_with_its_test_set(tmp_path: Path) -> None:
    stand_ins.visda(tmp_path)
    data = make("VisDA2017", tmp_path, "train", "validation")
    assert data.class_names == benchmarks()["VisDA2017"].classes
    tested = make("VisDA2017", tmp_path, "train", "test")
    assert tested.class_counts()["test"] == data.class_counts()["train"]
    assert "test/trunk00/0_0.jpg" in ids(tested, "test", "test")
    (tmp_path / "test" / "image_list.txt").unlink()
    with pytest.raises(UserError, match=r'no class "trunk00", which test in .*test/image_list\.txt, which says the cl'):
        make("VisDA2017", tmp_path, "train", "test")


@pytest.mark.parametrize("folder", ["Final_Training/Images", "Training"])
def test_signs_with_the_official_test_set(tmp_path: Path, folder: str) -> None:
    stand_ins.gtsrb(tmp_path, signs=30, folder=folder)
    stand_ins.synsigns(tmp_path)
    data = datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path), batch_size=2)
    assert data.class_names == ("0", "1", "2")
    assert not data._entries["gtsrb"].passed_over, "the tables in the folders are expected"
    parts = {split: ids(data, "gtsrb", split) for split in ("train", "val", "test")}
    assert parts["test"] == {f"GTSRB/Final_Test/Images/{number:05}.ppm" for number in range(3)}
    assert len(parts["train"] | parts["val"]) == 180
    signs = {split: {path.rpartition("_")[0] for path in parts[split]} for split in ("train", "val")}
    assert signs["val"]
    assert not signs["train"] & signs["val"], "all images of a sign are in one split"
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (4, 3, 40, 40)
    assert not hasattr(data.train_domains[1].labels, "__len__")


def test_signs_as_the_paper_divides_them(tmp_path: Path) -> None:
    stand_ins.gtsrb(tmp_path, signs=40)
    stand_ins.synsigns(tmp_path)
    data = datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path), gtsrb="paper")
    parts = {split: ids(data, "gtsrb", split) for split in ("train", "val", "test")}
    assert all("Final_Test" not in path for part in parts.values() for path in part)
    assert sum(map(len, parts.values())) == 240
    assert 0.12 < len(parts["test"]) / 240 < 0.28
    assert parts["val"]
    other = datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path), gtsrb="paper", split_seed=1)
    assert ids(other, "gtsrb", "test") != parts["test"]
    with pytest.raises(UserError, match=r'unknown data\.gtsrb "papr": did you mean "paper"'):
        datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path), gtsrb="papr")


def test_signs_that_lack_a_list(tmp_path: Path) -> None:
    stand_ins.gtsrb(tmp_path)
    stand_ins.synsigns(tmp_path)
    table = tmp_path / "GT-final_test.csv"
    rows = table.read_text()
    table.write_text(rows.replace("ClassId", "Class"))
    with pytest.raises(UserError, match=r'GT-final_test\.csv, line 2: expected columns "Filename" and "ClassId" betwe'):
        datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path))
    table.unlink()
    with pytest.raises(
        UserError, match=r"no GT-final_test\.csv lies in .*, which says the classes: unpack GTSRB_Final"
    ):
        datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path))
    for image in (tmp_path / "GTSRB" / "Final_Test" / "Images").iterdir():
        image.unlink()
    (tmp_path / "GTSRB" / "Final_Test" / "Images").rmdir()
    (tmp_path / "GTSRB" / "Final_Test").rmdir()
    with pytest.raises(UserError, match=r"holds no test images of GTSRB: get .*, or say --data\.gtsrb paper"):
        datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path))
    assert datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path), gtsrb="paper")
    (tmp_path / "synthetic_data" / "train_labelling.txt").write_text("train/00000.png sign 0\n")
    with pytest.raises(UserError, match=r'train_labelling\.txt, line 1: expected "path number", not "train/00000'):
        datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path), gtsrb="paper")
    (tmp_path / "synthetic_data" / "train_labelling.txt").unlink()
    with pytest.raises(
        UserError, match=r"train_labelling\.txt is missing, which says the classes of the images of syn"
    ):
        datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path), gtsrb="paper")


def test_no_word_mirrors_a_sign(tmp_path: Path) -> None:
    stand_ins.gtsrb(tmp_path)
    stand_ins.synsigns(tmp_path)
    data = datamodules.Signs("synsigns", "gtsrb", root=str(tmp_path), augment="center_crop")
    image = data.load("synsigns", "train").inputs[0]
    assert all((data.augment(image) == image).all() for _ in range(8))
    assert "flip" not in str(data.view("weak")).lower()


def test_signs_are_listed_for_the_check(tmp_path: Path) -> None:
    stand_ins.gtsrb(tmp_path)
    entries = list_domain(benchmarks()["Signs"], tmp_path, "gtsrb")
    assert Counter(entry.split for entry in entries) == {"train": 18, "test": 3}


@pytest.mark.parametrize("folder", [".", "SynthDigits"])
def test_synnumbers(tmp_path: Path, folder: str) -> None:
    rng = np.random.default_rng(0)
    home = tmp_path / folder
    home.mkdir(exist_ok=True)
    for half, count in (("train", 60), ("test", 20)):
        labels = 1 + np.arange(count) % 10
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        images[0, 0] = (labels % 10)[None]
        savemat(home / f"synth_{half}_32x32.mat", {"X": images, "y": labels[:, None]})
    data = datamodules.Digits("synnumbers", "synthetic", scale="full", size=32, root=str(tmp_path))
    test = data.load("synnumbers", "test")
    assert len(test) == 20
    assert all(int(test.inputs[i][0, 0, 0]) == label for i, label in enumerate(test.labels)), "10 stands for 0"
    assert len(data.load("synnumbers", "train")) + len(data.load("synnumbers", "val")) == 60
    (home / "synth_test_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(UserError, match=r"synth_test_32x32\.mat must hold X, uint8 \(32, 32, 3, N\), and y"):
        datamodules.digit_files.read_synnumbers(tmp_path)
    (home / "synth_test_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"holds no synth_test_32x32\.mat, in no folder of it either"):
        datamodules.digit_files.read_synnumbers(tmp_path)
