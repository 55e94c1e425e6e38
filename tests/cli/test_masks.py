"""Folders of masks through the commands: from labels of one domain to masks of another."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused
from PIL import Image

FIT = (
    *("--model", "DANN", "--model.network", "dafw.nn.segmenter.TinySegmenter", "--model.problem", "Segmentation"),
    *("--data", "MaskFolders", "--data.root", "photos", "--data.source", "day", "--data.target", "night"),
    *("--data.batch_size", "4", "--data.steps_per_epoch", "3", "--trainer.max_epochs", "1"),
    *("--data.split", "[0.5,0.25,0.25]", "--trainer.accelerator", "cpu", "--run.dir", "run"),
)


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of two sizes by day, with masks, and at night, without."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "kept"))
    rng = np.random.default_rng(0)
    for domain in ("day", "night"):
        for index in range(16):
            mask = np.zeros((24 + 8 * (index % 2), 40), np.uint8)
            mask[8:16, 8:20] = 3
            pixels = rng.integers(0, 100, (*mask.shape, 3)) + 40 * mask[..., None]
            for kind, values in (("images", pixels), ("masks", mask)):
                if kind == "images" or domain == "day":
                    path = Path("photos", domain, kind, f"{index}.png")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(values.astype(np.uint8)).save(path)
    Path("photos", "classes.yaml").write_text("0: ground\n3: thing\n")


def test_from_labels_by_day_to_masks_at_night(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "fit", *FIT, "--data.size", "16", "--data.crop", "[12,16]", "--data.augment", "crop")
    assert done.code == 0, done.err
    assert "night: 16 images, no masks; " in done.out
    assert json.loads(Path("run", "result.json").read_text())["metric"] == "miou"
    assert Path("run", "plots", "masks.png").is_file()
    assert call(capsys, "predict", "run", "--output", "masks").code == 0
    with Path("masks", "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    for row in rows:
        image, mask = Image.open(Path("photos", row["sample"])), Image.open(Path("masks", row["file"]))
        assert (mask.size, mask.mode) == (image.size, "P")
        shares = np.bincount(np.asarray(mask).ravel(), minlength=2) / mask.width / mask.height
        assert [float(row[f"share_{name}"]) for name in ("ground", "thing")] == pytest.approx(shares, abs=1e-6)
        assert 0.5 <= float(row["confidence"]) <= 1
    shutil.move("photos/night/images", "new")
    shutil.rmtree("photos")  # the run is enough to predict any images
    assert call(capsys, "predict", "run", "--images", "new", "--output", "again").code == 0
    for row in rows:
        name = Path(row["sample"]).name
        again = next(Path("again", "images").glob(f"*new_{name}*"))
        assert np.array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(Path("masks", row["file"]))))


def test_a_wrong_mask_is_one_sentence_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("photos", "day", "masks", "5.png")
    mask = np.array(Image.open(path))
    mask[:2, 0] = 9
    Image.fromarray(mask).save(path)
    assert "2 pixels of the mask photos/day/masks/5.png have the id 9" in refused(capsys, "fit", *FIT[:-2])
