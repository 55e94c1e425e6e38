"""``dafw data prepare`` and ``dafw data cache``: from archives, or a server, to a checked benchmark."""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import stand_ins
from commands import Outcome, call, refused
from PIL import Image

import dafw.commands.prepare
import datamodules
from dafw.commands.reviews import review_names
from dafw.data.unpacking import UNPACKING
from dafw.files import locked
from datamodules.layouts import Benchmark, DomainFacts, benchmarks
from datamodules.mirrors import Mirror, MirroredFile, mirrors

COUNTS = {"back_pack": 2, "bike": 2, "bike_helmet": 2}


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an archive of each domain of Office-31, which has 2 images of 3 classes each."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))
    stand_ins.office(tmp_path / "made", count=2)
    (tmp_path / "archives").mkdir()
    for kind, domain in (("zip", "amazon"), ("gztar", "dslr"), ("tar", "webcam")):
        shutil.make_archive(str(tmp_path / "archives" / domain), kind, tmp_path / "made", domain)
    domains = {name: DomainFacts((name,), 6, COUNTS) for name in ("amazon", "dslr", "webcam")}
    facts: Benchmark = replace(benchmarks()["Office31"], domains=domains, classes=tuple(COUNTS), num_classes=3)
    monkeypatch.setattr(dafw.commands.prepare, "benchmarks", lambda: {**benchmarks(), "Office31": facts})
    return tmp_path / "archives"


def prepare(capsys: pytest.CaptureFixture[str], root: Path, *arguments: object) -> Outcome:
    return call(capsys, "data", "prepare", "Office31", "--root", root, *arguments)


def broken_off(capsys: pytest.CaptureFixture[str], root: Path) -> str:
    """The sentence with which it ends, after the lines that say how far it is."""
    done = prepare(capsys, root)
    assert (done.code, done.out) == (2, "")
    *said, last = done.err.splitlines()
    assert all(": fetching " in line or line.endswith("files unpacked") for line in said)
    return last.removeprefix("dafw: error: ")


def test_archives(capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    done = prepare(capsys, root, "--archive", *sorted(archives.iterdir()))
    assert done.code == 0
    assert done.out.endswith("Office31 is complete\n")
    assert "amazon.zip: 6 files unpacked\n" in done.err
    assert sorted(path.name for path in root.iterdir()) == [".unpacked.json", "amazon", "dslr", "webcam"]
    again = prepare(capsys, root, "--archive", archives / "amazon.zip")
    assert (again.code, again.err) == (0, "amazon.zip: unpacked before\n")
    data = datamodules.Office31("amazon", "webcam", root=str(root), size=8, resize=8, batch_size=2)
    data.setup("fit")
    assert data.class_names == tuple(COUNTS)


def test_one_archive_of_three_is_not_complete(
    capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path
) -> None:
    done = prepare(capsys, tmp_path / "root", "--archive", archives / "amazon.zip")
    assert done.code == 1
    assert "its folder (dslr) is missing" in done.out
    assert "where to get it: domain_adaptation_images.tar.gz" in done.out


def test_what_is_refused_leaves_nothing(capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.zip"
    half.write_bytes((archives / "amazon.zip").read_bytes()[:300])
    assert refused(capsys, "data", "prepare", "Office31", "--root", tmp_path / "root", "--archive", half) == (
        f"{half} is no zip or tar archive, or it is cut short: get it again"
    )
    assert not (tmp_path / "root").exists()
    missing = tmp_path / "no.zip"
    assert refused(capsys, "data", "prepare", "Office31", "--root", tmp_path / "root", "--archive", missing) == (
        f"the archive {missing} does not exist"
    )
    assert refused(capsys, "data", "prepare", "Office31", "--root", half, "--archive", half) == (
        f"{half} (--root) is a file: give the folder that shall hold Office31"
    )
    assert refused(capsys, "data", "prepare", "Ofice31", "--root", tmp_path).startswith(
        'unknown benchmark "Ofice31": did you mean "Office31"?'
    )
    assert refused(capsys, "data", "prepare", "PACS", "--root", tmp_path / "root").startswith(
        "PACS is not fetched, since its copies lie on Google Drive, which wants a browser: get PACS.zip, which"
    )
    assert not (tmp_path / "root").exists()


def test_two_at_once(capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path) -> None:
    lock = tmp_path / "root" / UNPACKING / "lock"
    with locked(lock):
        said = refused(
            capsys, "data", "prepare", "Office31", "--root", tmp_path / "root", "--archive", archives / "dslr.tar.gz"
        )
        assert said == f"another process holds {lock}"
        assert lock.exists()


def test_the_checksums_of_archives(
    capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archives / "amazon.zip"
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    files = (MirroredFile("amazon.zip", "http://localhost/amazon.zip", md5="0" * 32),)
    known = Mirror(files, "", "seen (a test)")
    monkeypatch.setattr(dafw.commands.prepare, "mirrors", lambda: {"Office31": known})
    root = tmp_path / "root"
    assert refused(capsys, "data", "prepare", "Office31", "--root", root, "--archive", archive) == (
        f"{archive} has the md5 {md5}, and {'0' * 32} is known, seen (a test): "
        "get it again, or take it with --unverified"
    )
    assert not root.exists()
    assert "6 files unpacked" in prepare(capsys, root, "--archive", archive, "--unverified").err
    files = (replace(files[0], md5=md5),)
    monkeypatch.setattr(dafw.commands.prepare, "mirrors", lambda: {"Office31": replace(known, files=files)})
    assert "6 files unpacked" in prepare(capsys, tmp_path / "other", "--archive", archive).err


class Server(BaseHTTPRequestHandler):
    """Serves a folder. It breaks off once for each name in ``breaks``, and counts the bytes that it sends."""

    folder: ClassVar[Path]
    breaks: ClassVar[set[str]] = set()
    sent: ClassVar[dict[str, list[int]]] = {}

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        file = self.folder / name
        if not file.is_file():
            self.send_error(404, "Not Found")
            return
        content = file.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        rest = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if name in self.breaks:
            self.breaks.discard(name)
            rest = rest[: len(rest) // 2]
        self.sent.setdefault(name, []).append(len(rest))
        self.wfile.write(rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(archives: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the archives, which is the mirror of Office-31."""
    Server.folder, Server.sent, Server.breaks = archives, {}, set()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}"
        files = tuple(
            MirroredFile(one.name, f"{address}/{one.name}", md5=hashlib.md5(one.read_bytes()).hexdigest())
            for one in sorted(archives.iterdir())
        )
        monkeypatch.setattr(dafw.commands.prepare, "mirrors", lambda: {"Office31": Mirror(files, "", "seen (a test)")})
        yield address
        running.shutdown()


def test_fetching(capsys: pytest.CaptureFixture[str], server: str, archives: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    Server.breaks = {"dslr.tar.gz"}
    said = broken_off(capsys, root)
    whole = (archives / "dslr.tar.gz").stat().st_size
    assert said.startswith(f"{server}/dslr.tar.gz broke off after {whole // 2:,} of {whole:,} bytes: the same command")
    assert sorted(path.name for path in root.iterdir()) == [".unpacked.json", UNPACKING, "amazon"]
    done = prepare(capsys, root)
    assert done.code == 0
    assert done.out.endswith("Office31 is complete\n")
    assert Server.sent["amazon.zip"] == [(archives / "amazon.zip").stat().st_size], "it is fetched once"
    assert Server.sent["dslr.tar.gz"] == [whole // 2, whole - whole // 2], "what was there is not fetched again"
    assert sorted(path.name for path in root.iterdir()) == [".unpacked.json", "amazon", "dslr", "webcam"]
    assert prepare(capsys, root).code == 0
    assert len(Server.sent["webcam.tar"]) == 1


def test_what_is_there_already_is_not_fetched(capsys: pytest.CaptureFixture[str], server: str, tmp_path: Path) -> None:
    done = prepare(capsys, tmp_path / "made")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("Office31 is complete\n")
    assert not Server.sent


def test_a_server_with_other_files(
    capsys: pytest.CaptureFixture[str], server: str, archives: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (archives / "amazon.zip").write_bytes((archives / "dslr.tar.gz").read_bytes())
    said = broken_off(capsys, root)
    assert "amazon.zip has the md5" in said
    assert not root.exists(), "a wrong file is not kept"
    (archives / "amazon.zip").unlink()
    said = broken_off(capsys, root)
    assert said.startswith(f"{server}/amazon.zip cannot be fetched: the server answers 404 Not Found; or get domain_")
    assert not root.exists()


def test_no_server(
    capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, reason in (("http://127.0.0.1:9/a.zip", "cannot be reached ("), ("ftp://host/a.zip", "neither http nor")):
        files = (MirroredFile("a.zip", url),)
        monkeypatch.setattr(
            dafw.commands.prepare, "mirrors", lambda f=files: {"Office31": Mirror(f, "", "seen (a test)")}
        )
        said = broken_off(capsys, tmp_path / "root")
        assert said.startswith(f"{url} cannot be reached (")
        assert reason in said
        assert "; or get domain_adaptation_images.tar.gz" in said
        assert not (tmp_path / "root").exists()


def test_lists_beside_the_archives(
    capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = tmp_path / "image_list.txt"
    listing.write_text("trunk00/1.jpg 0\n")
    root = tmp_path / "root"
    (root / "test").mkdir(parents=True)
    call(capsys, "data", "prepare", "VisDA2017", "--root", root, "--archive", listing)
    assert (root / "test" / "image_list.txt").read_text() == "trunk00/1.jpg 0\n"


def test_what_is_known_of_the_mirrors() -> None:
    assert set(mirrors()) == {*benchmarks(), *review_names()}
    for name, mirror in mirrors().items():
        assert mirror.files or mirror.why, name
        assert not mirror.files or mirror.provenance.startswith(("seen (", "recalled (")), name
        for one in mirror.files:
            assert one.url.startswith(("http://", "https://"))
            assert one.name.endswith((".zip", ".tar", ".tgz", ".tar.gz", ".txt")), one
            assert one.md5 is None or len(one.md5) == 32
        assert len({one.name for one in mirror.files}) == len(mirror.files)


def test_the_cache_is_the_one_of_a_run(
    capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "made"
    done = call(capsys, "data", "cache", "Office31", "--root", root, "--size", "16", "--fit", "squash")
    assert done.code == 0
    files = {line.partition(":")[0]: Path(line.rpartition(" in ")[2]) for line in done.out.splitlines()}
    assert set(files) == {"amazon", "dslr", "webcam"}
    assert done.out.startswith("amazon: 6 images of 16 x 16 pixels in ")
    assert "decoding 6 of 6 images into" in done.err
    data = datamodules.Office31("amazon", "dslr", root=str(root), size=8, resize=16, fit="squash", cache=True)
    assert data.decoded("dslr").file == files["dslr"]
    assert call(capsys, "data", "cache", "Office31", "--root", root, "--size", "16", "--fit", "squash").err == ""
    assert refused(capsys, "data", "cache", "Office31", "--root", root, "--size", "0") == (
        "--size must be at least 1 pixel, not 0"
    )
    said = refused(capsys, "data", "cache", "Office31", "--root", root, "--size", "8", "--domains", "amazn")
    assert said.startswith('unknown domain "amazn": did you mean "amazon"?')


def test_a_sheet_of_images_and_the_statistics_of_the_domains(
    capsys: pytest.CaptureFixture[str], archives: Path, tmp_path: Path
) -> None:
    root = tmp_path / "made"
    for image in (root / "dslr").rglob("*.jpg"):
        Image.new("RGB", (20, 20), (255, 0, 51)).save(image, "PNG")
    (root / "webcam" / "images" / "bike" / "frame_0000.jpg").write_bytes(b"no image")
    sheet = tmp_path / "sheets" / "office.png"
    done = call(capsys, "data", "check", "Office31", "--root", root, "--sheet", sheet)
    assert done.code == 1
    assert "dslr    mean 1.000 0.000 0.200  std 0.000 0.000 0.000  (6 images)\n" in done.out
    assert "(5 images)\n" in done.out
    assert done.out.endswith(f"images of 3 classes: {sheet}\n")
    with Image.open(sheet) as drawn:
        pixels = np.asarray(drawn)
    assert (pixels == (255, 0, 51)).all(2).sum() == 6 * 64 * 64, "each of its six images is drawn"
    assert ((pixels == (255, 0, 0)).all(2)).sum() > 40, "an image that cannot be decoded has a red line"
    assert (pixels[:, :150] < 100).any(), "the names of the classes"
    wrong = refused(capsys, "data", "check", "Office31", "--root", root, "--sheet", tmp_path / "sheet.jpg")
    assert wrong == f"{tmp_path / 'sheet.jpg'} (--sheet) must end in .png"
    said = refused(capsys, "data", "check", "gta5", "--root", root, "--sheet", sheet)
    assert said == "--sheet draws benchmarks of classes, and gta5 is none: leave it out"
