"""``dafw data``: what is known of the benchmarks, and what a folder lacks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused
from PIL import Image

import dafw.commands.data
from dafw.data import Domain
from dafw.data.roles import Split
from dafw.testing.toys import ToyData
from datamodules.layouts import Benchmark, DomainFacts, benchmarks, list_checksum, list_domain


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole benchmark called PACS, of few images: 2 domains with 2 classes of 3 each."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))
    rng = np.random.default_rng(0)
    for domain in ("photo", "sketch"):
        for label in ("dog", "guitar"):
            folder = tmp_path / "data" / "kfold" / domain / label
            folder.mkdir(parents=True)
            for index in range(3):
                pixels = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    domains = {name: DomainFacts((name,), 6, {"dog": 3, "guitar": 3}) for name in ("photo", "sketch")}
    facts: Benchmark = replace(
        benchmarks()["PACS"], domains=domains, classes=("dog", "guitar"), num_classes=2, checksum=None
    )
    home = tmp_path / "data" / "kfold"
    entries = [entry for name in domains for entry in list_domain(facts, home, name)]
    facts = replace(facts, checksum=list_checksum(entries))
    monkeypatch.setattr(dafw.commands.data, "benchmarks", lambda: {"PACS": facts, "VLCS": benchmarks()["VLCS"]})
    return tmp_path / "data"


def check(capsys: pytest.CaptureFixture[str], root: Path, *options: str) -> tuple[int, str]:
    done = call(capsys, "data", "check", "PACS", "--root", root, *options)
    assert done.err == ""
    return done.code, done.out


def line(out: str, domain: str) -> str:
    return next(row for row in out.splitlines() if row.startswith(f"{domain} "))


@pytest.mark.parametrize("options", [(), ("--decode",)])
def test_a_complete_benchmark(capsys: pytest.CaptureFixture[str], root: Path, options: tuple[str, ...]) -> None:
    code, out = check(capsys, root, *options)
    assert code == 0
    assert line(out, "photo").split() == ["photo", "6", "6", "2", "2", "complete"]
    assert out.endswith("PACS is complete and its list is the known one\n")
    assert "where to get it" not in out


def test_missing_images(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    (root / "kfold" / "photo" / "dog" / "1.png").unlink()
    code, out = check(capsys, root)
    assert code == 1
    assert line(out, "photo").endswith("1 images are missing; of a class: dog 2 of 3")
    assert line(out, "sketch").endswith("complete")
    assert "the list of all images is not the known one (its checksum differs)" in out
    assert "\nPACS is not complete\n" in out
    assert "how that is known, images: seen (" in out
    assert "where to get it: PACS.zip" in out


def test_a_renamed_image(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    (root / "kfold" / "photo" / "dog" / "1.png").rename(root / "kfold" / "photo" / "dog" / "4.png")
    code, out = check(capsys, root)
    assert code == 1
    assert line(out, "photo").endswith("complete")
    assert "checksum differs" in out


def test_missing_and_unexpected_folders(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    (root / "kfold" / "photo").rename(root / "kfold" / "phtoo")
    (root / "kfold" / "sketch" / "dog").rename(root / "kfold" / "sketch" / "dgo")
    code, out = check(capsys, root)
    assert code == 1
    assert line(out, "photo").endswith("its folder (photo) is missing")
    assert line(out, "sketch").endswith("no images of dog; unexpected class folders: dgo")
    assert "folders of no domain, not read: phtoo" in out


def test_too_many_images_and_an_empty_class(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    for image in (root / "kfold" / "photo" / "guitar").iterdir():
        image.unlink()
    image = root / "kfold" / "sketch" / "dog" / "0.png"
    image.with_name("9.png").write_bytes(image.read_bytes())
    code, out = check(capsys, root)
    assert code == 1
    assert line(out, "photo").endswith("3 images are missing; no images of guitar")
    assert line(out, "sketch").endswith("1 images too many; of a class: dog 4 of 3")


def test_a_domain_without_images(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    for image in (root / "kfold" / "photo").rglob("*.png"):
        image.unlink()
    assert line(check(capsys, root)[1], "photo").endswith("its folder (photo) holds no images of classes")


def test_a_broken_image_is_found_by_decoding(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    image = root / "kfold" / "sketch" / "guitar" / "2.png"
    image.write_bytes(image.read_bytes()[:60])
    assert check(capsys, root)[0] == 0
    code, out = check(capsys, root, "--decode")
    assert code == 1
    assert line(out, "sketch").endswith("1 images cannot be decoded: sketch/guitar/2.png")


def test_images_that_a_list_names_and_that_are_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))
    folder = tmp_path / "real" / "bee"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    (tmp_path / "real_train.txt").write_text("real/bee/1.png 0\nreal/bee/2.png 0\n")
    (tmp_path / "real_test.txt").write_text("")
    done = call(capsys, "data", "check", "DomainNet", "--root", tmp_path, "--decode")
    assert done.code == 1
    assert line(done.out, "real").split()[1:5] == ["1", "172,947", "1", "345"]
    assert "1 images of its list are not there, real/bee/2.png first; 172,945 images" in line(done.out, "real")
    assert "its folder (clipart) is missing" in line(done.out, "clipart")
    assert "1 classes instead of 345" in done.out


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "data", "list")
    assert done.code == 0
    assert "PACS: 9,991 images, 7 classes: art_painting 2,048, cartoon 2,344, photo 1,670, sketch 3,929\n" in done.out
    for facts in benchmarks().values():
        assert f"{facts.name}: " in done.out
        assert f"licence: {facts.licence}" in done.out
        assert all(how in done.out for how in facts.provenance.values())


def test_wrong_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert refused(capsys, "data", "check", "PAC", "--root", tmp_path).startswith(
        'unknown benchmark "PAC": did you mean "PACS"?'
    )
    assert refused(capsys, "data", "check", "PACS", "--root", tmp_path / "no") == (
        f"the folder {tmp_path / 'no'} (data.root) does not exist"
    )
    assert refused(capsys, "data", "check", "PACS", "--root", tmp_path).startswith(
        f"{tmp_path} (data.root) holds none of PACS's domain folders"
    )
    assert "--root" in refused(capsys, "data", "check", "PACS")
    assert 'unknown choice "chekc"' in refused(capsys, "data", "chekc")
    assert "required: action" in refused(capsys, "data")


def test_wrong_labels_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data's own datamodule and problem say what a wrong label is; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))
    toys = ("--model", "DANN", "--data", "dafw.testing.toys.ToyData", "--data.source", "a", "--data.target", "b")
    done = call(capsys, "data", "labels", *toys)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "no label is wrong"
    assert "b, test: 21 samples, right" in done.out
    load = ToyData.load

    def wrong(self: ToyData, name: str, split: Split) -> Domain:
        domain = load(self, name, split)
        labels = np.array(domain.labels)
        if (name, split) == ("b", "test"):
            labels[:] = 7
        return replace(domain, labels=labels)

    monkeypatch.setattr(ToyData, "load", wrong)
    done = call(capsys, "data", "labels", *toys)
    assert done.code == 1
    lines = done.out.splitlines()
    assert "  b/0 has class 7, but there are 3 classes" in lines
    assert lines[-2:] == ["  and 1 more", "21 wrong labels"]
    assert not list(tmp_path.glob("runs"))
