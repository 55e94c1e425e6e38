"""Image folders as domains."""

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, one_run
from folders import COUNTS, make, splits
from PIL import Image

from dafw.data.manifest import Entry, write_manifest
from dafw.errors import UserError
from datamodules.label_sets import LabelSets
from datamodules.splits import hashed_split


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))


def test_what_there_is(shared_root: Path) -> None:
    data = make(shared_root)
    assert data.domain_names == ("art", "photo")
    assert data.class_names == ("cup", "mug", "pen")
    assert data.num_classes == 3
    assert data.class_counts() == COUNTS


@pytest.mark.parametrize("cache", [False, True])
def test_splits_hold_every_image_once_with_its_folder_as_label(shared_root: Path, cache: bool) -> None:
    data = make(shared_root, cache=cache)
    found = splits(data, "art")
    assert sorted(name for names in found.values() for name in names) == sorted(
        path.relative_to(shared_root).as_posix() for path in (shared_root / "art").rglob("*.png")
    )
    for split in ("train", "val", "test"):
        domain = data.load("art", split)
        assert [data.class_names[label] for label in domain.labels] == [name.split("/")[1] for name in domain.ids]
        side = 16 if split == "train" else 12
        assert domain.inputs[0].shape == (3, side, side)
        assert domain.inputs[0].dtype == torch.uint8
    assert 45 <= len(found["train"]) <= 70
    assert len({image.numpy().tobytes() for split in found for image in data.load("art", split).inputs}) == 74


def test_the_cache_changes_no_pixel(shared_root: Path) -> None:
    plain, cached = make(shared_root), make(shared_root, cache=True)
    for split in ("train", "test"):
        pairs = zip(plain.load("photo", split).inputs, cached.load("photo", split).inputs, strict=True)
        assert all(a.equal(b) for a, b in pairs)


def test_a_split_depends_on_the_path_alone(root: Path) -> None:
    before = splits(make(root), "art")
    for path in sorted((root / "art").rglob("*.png"))[::3]:
        path.unlink()
    after = splits(make(root, seed=5), "art")
    for split, names in after.items():
        assert set(names) <= set(before[split])


def test_the_hash_of_a_path() -> None:
    names = [f"art/cup/{index}.jpg" for index in range(4000)]
    shares = (0.6, 0.3, 0.1)
    given = [hashed_split(name, shares) for name in names]
    for split, share in zip(("train", "val", "test"), shares, strict=True):
        assert given.count(split) / 4000 == pytest.approx(share, abs=0.03)
    assert hashed_split("art/caf\u00e9.jpg", shares) == hashed_split("art/cafe\u0301.jpg", shares)


def test_transductive_target_trains_and_tests_on_all_its_images(shared_root: Path) -> None:
    data = make(shared_root, transductive=True)
    assert splits(data, "art") == splits(make(shared_root), "art")
    found = splits(data, "photo")
    assert found["train"] == found["test"]
    assert len(found["train"]) == 76
    assert 0 < len(found["val"]) < 30
    data.setup("fit")
    assert data.train_domains[-1].name == "photo"
    assert data.train_domains[-1].labels is None


@pytest.mark.parametrize(
    ("augment", "num_workers"), [("none", 0), ("flip_crop", 0), ("flip_crop", 2), ("weak", 0), ("strong", 0)]
)
def test_batches_have_one_size(shared_root: Path, augment: str, num_workers: int) -> None:
    data = make(shared_root, augment=augment, cache=True, steps_per_epoch=2, num_workers=num_workers)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (16, 3, 12, 12)
    assert len(batch.y) == batch.num_source == 8
    loaders = [*data.val_dataloader(), *data.test_dataloader(), data.evaluation_loader(data.load("photo", "train"))]
    for loader in loaders:
        assert next(iter(loader)).x.shape[1:] == (3, 12, 12)


@pytest.mark.parametrize("cache", [False, True])
def test_domainbed_crops_the_images_as_they_are_in_their_files(tmp_path: Path, cache: bool) -> None:
    """Each row of the tall images has a level of its own, so that a level tells how far down a crop reaches."""
    levels = np.repeat(np.arange(200, dtype=np.uint8)[:, None], 60, 1)
    for index in range(80):
        folder = tmp_path / ("art", "photo")[index % 2] / ("cup", "mug")[index // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([levels] * 3, 2)).save(folder / f"{index}.png")
    options = {"augment": "domainbed", "size": 20, "resize": 20, "fit": "crop"}
    data = make(tmp_path, **options, cache=cache, batch_size=4, steps_per_epoch=1)
    data.setup("fit")
    whole = data.train_domains[0]
    cropped = data.augmented_domain(whole)
    assert whole.inputs[0].shape == (3, 20, 20)
    if cache:
        assert cropped is whole
    else:
        assert torch.equal(cropped.inputs[0], torch.from_numpy(np.stack([levels] * 3)))
    assert list(cropped.ids or []) == list(whole.ids or [])
    (batch,) = data.train_dataloader()
    assert batch.x.shape[1:] == (3, 20, 20)


def test_domainbed_evaluates_training_images_as_all_others(shared_root: Path) -> None:
    data, plain = (make(shared_root, augment=augment) for augment in ("domainbed", "flip_crop"))
    pairs = ((one.load("art", "train"), one) for one in (data, plain))
    first, second = (next(iter(one.evaluation_loader(domain.subset([2])))).x for domain, one in pairs)
    assert torch.equal(first, second)


def test_evaluation_takes_the_middle_and_training_without_augmentation_too(shared_root: Path) -> None:
    augmented, plain = make(shared_root).load("art", "train"), make(shared_root, augment="none").load("art", "train")
    (batch,) = make(shared_root).evaluation_loader(augmented.subset([4]))
    assert batch.x[0].equal(augmented.inputs[4][:, 2:14, 2:14])
    assert batch.x[0].equal(plain.inputs[4])


def test_augmentation_depends_on_the_seed(shared_root: Path) -> None:
    def first(seed: int) -> torch.Tensor:
        data = make(shared_root, seed=seed, target_batch_size=70, batch_size=50, split=(1.0, 0.0, 0.0))
        data.setup("fit")
        return next(iter(data.train_dataloader())).x

    assert first(1).equal(first(1))
    assert not first(1).equal(first(2))


def test_domains_travel_to_workers(shared_root: Path) -> None:
    domain = make(shared_root, cache=True).load("art", "train")
    assert pickle.loads(pickle.dumps(domain)).inputs[3].equal(domain.inputs[3])


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_fit(root: Path, fit: str) -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20] = 255
    for path in (root / "art" / "cup").glob("*.png"):
        Image.fromarray(pixels).save(path)
    data = make(root, fit=fit, size=16)
    cup = next(i for i, label in enumerate(data.load("art", "test").labels) if label == 0)
    assert bool(data.load("art", "test").inputs[cup].max() > 200) == (fit == "squash")


def test_views(shared_root: Path) -> None:
    view = make(shared_root).view("strong")
    assert view(torch.zeros(3, 16, 16, dtype=torch.uint8)).shape == (3, 12, 12)
    with pytest.raises(UserError, match='unknown augmentation "stron": did you mean "strong"'):
        make(shared_root).view("stron")


def test_an_image_that_vanished_is_named(root: Path) -> None:
    data = make(root)
    name = data.load("art", "test").ids[0]
    (root / name).unlink()
    with pytest.raises(UserError, match=f"{name} does not exist"):
        data.load("art", "test").inputs[0]


def remove(root: Path, folder: str) -> None:
    for path in (root / folder).iterdir():
        path.unlink()
    (root / folder).rmdir()


def test_a_class_on_one_side_only(root: Path) -> None:
    remove(root, "photo/pen")
    data = make(root)
    assert "pen" not in data.class_counts()["photo"]
    with pytest.raises(UserError, match=r'class "pen" is in art but not in photo'):
        data.setup("fit")
    sets = LabelSets(["cup", "mug"], ["pen"])
    make(root, label_sets=sets).setup("fit")
    with pytest.raises(UserError, match=r'photo has no sample of class "pen", which data.label_sets says it has'):
        make(root, source="photo", target="art", label_sets=sets).setup("fit")


def test_a_class_whose_images_are_all_for_testing_is_not_missing(root: Path) -> None:
    kept = next(name for name in splits(make(root), "photo")["test"] if "/pen/" in name)
    for path in (root / "photo" / "pen").iterdir():
        if path != root / kept:
            path.unlink()
    make(root).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "/nowhere/at/all"}, r"folder /nowhere/at/all \(data\.root\) does not exist"),
        ({"target": "phto"}, 'unknown domain "phto": did you mean "photo"'),
        ({"size": 17}, r"data\.size must be between 1 and data\.resize \(16\), not 17"),
        ({"split": (0.5, 0.1, 0.1)}, r"data\.split must be three shares that sum to 1"),
        ({"split": (1.2, -0.1, -0.1)}, r"data\.split must be three shares that sum to 1"),
        ({"augment": "flipcrop"}, 'unknown augmentation "flipcrop": did you mean "flip_crop"'),
        ({"fit": "corp"}, 'unknown fit "corp": did you mean "crop"'),
        ({"on_corrupt": "skp"}, 'unknown on_corrupt "skp": did you mean "skip"'),
        ({"manifest": "/nowhere/list.csv"}, r"manifest /nowhere/list\.csv does not exist"),
    ],
)
def test_wrong_arguments(shared_root: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**{"root": shared_root, **options})


def test_wrong_requests(shared_root: Path) -> None:
    with pytest.raises(UserError, match='unknown domain "phto"'):
        make(shared_root).load("phto", "train")
    with pytest.raises(UserError, match='unknown split "trian": did you mean "train"'):
        make(shared_root).load("art", "trian")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none of the 74 images of art is in its val split"):
        make(shared_root, split=(0.9, 0.0, 0.1)).load("art", "val")


def test_empty_folders_are_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match=r"void \(data\.root\) holds no domain folders"):
        make(tmp_path / "void")
    (root / "photo" / "hat").mkdir()
    with pytest.raises(UserError, match=r"class folder .*photo/hat holds no images"):
        make(root)
    (root / "blank").mkdir()
    with pytest.raises(UserError, match=r"domain folder .*blank holds no class folders"):
        make(root, target="blank")


def test_logs_say_what_is_built(shared_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    make(shared_root, cache=True).prepare_data()
    assert "decoding 74 of 74 images into" in caplog.text


def test_evaluation_of_whole_images(shared_root: Path) -> None:
    data = make(shared_root, evaluate_whole=True, augment="crop")
    data.setup("fit")
    assert next(iter(data.train_dataloader())).x.shape[1:] == (3, 12, 12)
    for loader in (*data.val_dataloader(), *data.test_dataloader(), *data.predict_dataloader()):
        assert next(iter(loader)).x.shape[1:] == (3, 16, 16)
    middle = next(iter(make(shared_root).test_dataloader()[0])).x
    assert torch.equal(next(iter(data.test_dataloader()[0])).x[:, :, 2:14, 2:14], middle)
    with pytest.raises(UserError, match=r"data\.augment, which must not be none"):
        make(shared_root, evaluate_whole=True, augment="none")


def unlabelled(root: Path, path: Path) -> dict[str, object]:
    """A target without labels, listed or as a flat folder, whichever ``path`` asks for."""
    if path.suffix == ".csv":
        files = sorted(root.rglob("*.png"))
        entries = [(file.relative_to(root).as_posix(), file.parent.name, file.parents[1].name) for file in files]
        write_manifest(path, [Entry(name, None if d == "photo" else label, d) for name, label, d in entries])
        return {"manifest": str(path)}
    for file in sorted((root / "photo").rglob("*.png")):
        file.rename(root / "photo" / f"{file.parent.name}_{file.name}")
    for folder in [folder for folder in (root / "photo").iterdir() if folder.is_dir()]:
        folder.rmdir()
    return {}


@pytest.mark.parametrize("form", ["list.csv", "flat"])
def test_a_target_without_labels_is_served_and_a_source_without_is_refused(
    root: Path, tmp_path: Path, form: str
) -> None:
    options = unlabelled(root, tmp_path / form)
    data = make(root, **options)
    assert data.class_names == ("cup", "mug", "pen")
    assert data.class_counts()["photo"] == {}
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch.num_source, len(batch)) == (8, 16)
    assert [one.role for one in data.evaluations("validate")] == ["source_train", "source_val", "target_val"]
    assert sum(len(data.load("photo", split)) for split in ("train", "val", "test")) == 76
    assert data.load("photo", "test").labels is None
    with pytest.raises(UserError, match="photo has no labels, so that nothing can be learnt from it: make it a target"):
        make(root, source="photo", target="art", **options).setup("fit")


@pytest.mark.parametrize("form", ["list.csv", "flat"])
def test_a_target_without_labels_goes_through_every_command(
    root: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    options = [f"--data.{key}={value}" for key, value in unlabelled(root, tmp_path / form).items()]
    given = [
        *("--model", "DANN", "--model.width", "8", "--model.network.backbone", "dafw.testing.toys.ToyNet"),
        *("--data", "ImageFolderDomains", "--data.root", root, "--data.source", "art", "--data.target", "photo"),
        *("--data.size", "6", "--data.resize", "8", "--data.batch_size", "8", "--data.steps_per_epoch", "2"),
        *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", *options),
    ]
    done = call(capsys, "fit", *given)
    assert (done.code, done.err) == (0, "")
    assert "photo: accuracy nan (photo has no labels)" in done.out
    result = json.loads((one_run(tmp_path / "runs") / "result.json").read_text())
    assert set(result["test"]) == {"art"}
    assert {"source_accuracy", "snd"} <= set(result["history"][-1]["validators"])
    assert result["history"][-1]["oracle"] == {}
    for command in ("validate", "test"):
        again = call(capsys, command, *given)
        assert (again.code, again.err) == (0, "")
        assert "photo/accuracy" not in again.out
    tested = len(make(root, **unlabelled_options(options)).load("photo", "test"))
    for split, count in (((), sum(COUNTS["photo"].values())), (("--split", "test"), tested)):
        predicted = call(capsys, "predict", *given, *split)
        assert (predicted.code, predicted.err) == (0, "")
        assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + count


def unlabelled_options(options: list[str]) -> dict[str, object]:
    return dict(option.removeprefix("--data.").split("=", 1) for option in options)


def test_two_spellings_of_a_letter_are_one_class(root: Path) -> None:
    """As of folders from a Mac and from Linux."""
    composed, parted = "caf\u00e9", "cafe\u0301"
    (root / "art" / "cup").rename(root / "art" / composed)
    (root / "photo" / "cup").rename(root / "photo" / parted)
    data = make(root, label_sets=LabelSets([parted, "mug"], 0, ["pen"]))
    assert data.class_names == (composed, "mug", "pen")
    data.setup("fit")
    assert data.known_names == (composed, "mug")
    entries = [Entry(f"art/{composed}/000.png", parted, "art"), Entry(f"photo/{parted}/000.png", composed, "photo")]
    write_manifest(root / "list.csv", entries)
    assert make(root, manifest=str(root / "list.csv")).class_names == (composed,)


def test_a_domain_in_another_spelling_is_explained(root: Path) -> None:
    (root / "art").rename(root / "caf\u00e9")
    said = r"unknown domain .* looks the same, but its characters are others: 'caf\\xe9', not 'cafe\\u0301'"
    with pytest.raises(UserError, match=said):
        make(root, source="cafe\u0301")


def test_the_office_protocol_trains_on_everything_and_validates_a_source_on_a_part_of_it(shared_root: Path) -> None:
    data, divided = make(shared_root, protocol="office"), make(shared_root)
    assert (data.holds_out_source, divided.holds_out_source) == (False, True)
    source, target = splits(data, "art"), splits(data, "photo")
    assert (len(source["train"]), len(target["train"]), target["test"]) == (74, 76, target["train"])
    for name, found in (("art", source), ("photo", target)):
        assert found["val"] == splits(divided, name)["val"]
        assert set(found["val"]) < set(found["train"])
    assert source["test"] == splits(divided, "art")["test"]
    data.setup("fit")
    assert [(domain.name, domain.labels is None, len(domain)) for domain in data.train_domains] == [
        ("art", False, 74),
        ("photo", True, 76),
    ]
    with pytest.raises(UserError, match=r"data\.transductive has no part in data\.protocol office"):
        make(shared_root, protocol="office", transductive=True)


def test_a_manifest_with_splits_is_not_overruled_by_the_office_protocol(shared_root: Path, tmp_path: Path) -> None:
    listed = [
        Entry(f"{domain}/cup/{number}.png", "cup", domain, "train") for domain in ("art", "photo") for number in "01"
    ]
    write_manifest(tmp_path / "list.csv", listed)
    with pytest.raises(UserError, match=r"list\.csv gives splits, which data\.protocol office would overrule"):
        make(shared_root, manifest=str(tmp_path / "list.csv"), protocol="office")


def test_evaluation_may_scale_the_whole_image(shared_root: Path) -> None:
    data = make(shared_root, evaluate_scaled=True, augment="crop")
    trained, tested = data.load("art", "train"), data.load("photo", "test")
    assert trained.inputs[0].shape == (3, 16, 16)
    expected = torch.nn.functional.interpolate(trained.inputs[4][None], (12, 12), mode="bilinear", antialias=True)[0]
    (batch,) = data.evaluation_loader(trained.subset([4]))
    assert batch.x[0].equal(expected)
    (served,) = data.evaluation_loader(tested.subset([0]))
    assert served.x[0].equal(tested.inputs[0])
    assert served.x[0].equal(data.evaluation_transform()(shared_root / tested.id(0)))
    assert make(shared_root, evaluate_scaled=True, augment="none").load("art", "train").inputs[4].equal(expected)
    with pytest.raises(UserError, match=r"data\.evaluate_whole keeps all of an image"):
        make(shared_root, evaluate_scaled=True, evaluate_whole=True, augment="crop")
