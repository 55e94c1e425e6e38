"""Files in image folders: what is read, what is passed over with a word, and what the file system does not give."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import call, one_run, refused
from PIL import Image, features

from dafw.data.manifest import Entry, write_manifest
from dafw.errors import UserError
from datamodules.folder import ImageFolderDomains
from datamodules.layouts import benchmarks, list_domain


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two domains with two classes of 15 images."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))
    rng = np.random.default_rng(0)
    for domain in ("art", "photo"):
        for name in ("cup", "mug"):
            (tmp_path / "benchmark" / domain / name).mkdir(parents=True)
            for index in range(15):
                pixels = rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "benchmark" / domain / name / f"{index:03}.png")
    return tmp_path / "benchmark"


def make(root: Path, **options: object) -> ImageFolderDomains:
    given = {"source": "art", "target": "photo", "root": str(root), "size": 8, "resize": 8, "batch_size": 4, **options}
    return ImageFolderDomains(**given)  # type: ignore[arg-type]


FIT = (
    *("fit", "--model", "SourceOnly", "--model.network.backbone", "small_bn_net", "--model.network.input_size", 8),
    *("--data", "ImageFolderDomains", "--data.source", "art", "--data.target", "photo", "--data.size", 8),
    *("--data.resize", 8, "--data.augment", "none", "--data.batch_size", 4, "--data.steps_per_epoch", 1),
    *("--trainer.max_epochs", 1, "--trainer.accelerator", "cpu", "--run.plots", "false", "--run.wandb", "disabled"),
)


def failing(method: Callable[..., object], path: Path, code: int) -> Callable[..., object]:
    """``method``, which fails for ``path`` as the file system does."""

    def call(given: object, *args: object) -> object:
        if Path(str(given)) == path:
            raise OSError(code, os.strerror(code), str(path))
        return method(given, *args)

    return call


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("mode", ["fail", "skip"])
@pytest.mark.parametrize("cache", [False, True])
def test_an_image_that_the_file_system_does_not_give_is_not_a_damaged_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, mode: str, cache: bool, code: int
) -> None:
    options = {"on_corrupt": mode, "cache": cache, "split": (1.0, 0.0, 0.0), "augment": "none"}
    image = root / "art" / "cup" / "003.png"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", failing(Path.read_bytes, image, code))
        with pytest.raises(UserError, match=f"the image {image} cannot be read: {os.strerror(code)}") as caught:
            list(make(root, **options).load("art", "train").inputs)
        assert "skip" not in str(caught.value)
    assert len(list(make(root, **options).load("art", "train").inputs)) == 30, "it was remembered"


def test_a_folder_that_cannot_be_read_is_one_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = root / "art" / "cup"
    monkeypatch.setattr(os, "scandir", failing(os.scandir, folder, errno.EACCES))
    said = refused(capsys, *FIT, "--data.root", root)
    assert said == f"the folder {folder} cannot be read: Permission denied; give yourself the right to read it"
    manifest = tmp_path / "list.csv"
    write_manifest(manifest, [Entry("art/cup/000.png", "cup", "art"), Entry("photo/cup/000.png", "cup", "photo")])
    assert refused(capsys, *FIT, "--data.root", root, "--data.manifest", manifest) == said


def litter(folder: Path) -> None:
    """Puts into ``folder`` what is no image of its class."""
    (folder / "more" / "deep").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "more" / "1.png")
    for name in ("a.heic", "b.HEIC", "notes", ".DS_Store"):
        (folder / name).write_bytes(b"?")
    (folder / "gone.png").symlink_to(folder / "none.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    os.mkfifo(folder / "pipe.png")


LITTER = (
    "1 hidden files or folders (art/cup/.DS_Store), 2 files ending in .heic (art/cup/a.heic first), "
    "2 links to nowhere (art/cup/gone.png first), 1 files without an ending (art/cup/notes), "
    "1 files of a special kind, such as pipes (art/cup/pipe.png), 1 folders inside class folders (art/cup/more)"
)


def test_what_is_passed_over_is_said_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    litter(root / "art" / "cup")
    data = make(root)
    assert data.class_counts() == {"art": {"cup": 15, "mug": 15}, "photo": {"cup": 15, "mug": 15}}
    data.prepare_data()
    assert capsys.readouterr() == ("", f"dafw: art: 30 images; passed over: {LITTER}\n")
    data.prepare_data()
    other = make(root)
    other._rank = lambda: (1, 2)  # type: ignore[method-assign]
    other.prepare_data()
    assert capsys.readouterr() == ("", "")


def test_a_run_says_what_it_passes_over(
    root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    litter(root / "art" / "cup")
    done = call(capsys, *FIT, "--data.root", root)
    assert (done.code, done.err) == (0, f"dafw: art: 30 images; passed over: {LITTER}\n")
    sizes = [
        "art: 30 images, 2 classes; 22 train, 6 val, 2 test",
        "photo: 30 images, 2 classes; 22 train, 3 val, 5 test",
    ]
    assert done.out.splitlines()[2:4] == sizes
    run = one_run(tmp_path / "runs")
    for command in ("test", "predict"):
        assert call(capsys, command, run).out.splitlines()[:2] == sizes
    assert one_run(tmp_path / "runs")


def test_a_class_whose_images_all_lie_deeper_is_named_with_what_it_holds(root: Path) -> None:
    (root / "art" / "pen" / "more").mkdir(parents=True)
    (root / "art" / "pen" / "1.heic").touch()
    with pytest.raises(UserError) as caught:
        make(root)
    assert str(caught.value) == (
        f"the class folder {root}/art/pen holds no images: it holds 1 files ending in .heic (art/pen/1.heic), "
        "1 folders inside class folders (art/pen/more)"
    )


def test_a_benchmark_says_what_it_passes_over(tmp_path: Path) -> None:
    (tmp_path / "photo" / "dog").mkdir(parents=True)
    (tmp_path / "photo" / "loose.png").touch()
    litter(tmp_path / "photo" / "dog")
    (tmp_path / "photo" / "dog" / "2.png").touch()
    found = list_domain(benchmarks()["PACS"], tmp_path, "photo")
    assert found == [Entry("photo/dog/2.png", "dog", "photo")]
    dog = LITTER.replace("art/cup", "photo/dog")
    assert str(found.passed_over) == f"1 images beside the folders of classes (photo/loose.png), {dog}"


@pytest.mark.parametrize("ending", ["jfif", "gif", "jp2", "tga", pytest.param("avif", id="avif")])
def test_what_pillow_decodes_is_read(root: Path, ending: str) -> None:
    if not features.check({"jp2": "jpg_2000", "avif": "avif"}.get(ending, "zlib")):
        pytest.skip("this Pillow does not decode it")
    for path in sorted((root / "art" / "cup").glob("*.png"))[::2]:
        image = Image.open(path)
        path.unlink()
        image.save(path.with_suffix(f".{ending}"), format="jpeg" if ending == "jfif" else None)
    data = make(root, split=(1.0, 0.0, 0.0))
    assert data.class_counts()["art"] == {"cup": 15, "mug": 15}
    assert len(list(data.load("art", "train").inputs)) == 30


def test_a_class_without_a_training_image_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(root).setup("fit")
    assert capsys.readouterr().err == ""
    train = [path for path in make(root).load("art", "train").ids or () if "/mug/" in path]
    for path in train:
        (root / path).unlink()
    make(root).setup("fit")
    assert capsys.readouterr().err == (
        'dafw: warning: no training sample of art has the class "mug": a model cannot learn it\n'
    )


def test_a_selection_of_a_domain_copies_no_names(root: Path) -> None:
    train, test = (make(root).load("art", split) for split in ("train", "test"))
    assert train.ids[0] == train.id(0) == next(iter(train.ids or ()))  # type: ignore[index]
    half = train.subset(range(0, len(train), 2))
    assert half.ids == list(train.ids or ())[::2]
    assert half.ids.text is train.ids.text  # type: ignore[union-attr]
    assert set(train.ids or ()).isdisjoint(test.ids or ())
