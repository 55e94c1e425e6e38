"""Stand-ins of the image benchmarks: the official layouts, with a few generated images in each class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.layouts import benchmarks


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (10, 12)) -> str:
    """One image, and its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng([seed, len(str(path.name))]).integers(0, 256, (*size, 3), np.uint8)).save(
        path
    )
    return path.name


def office(root: Path, name: str = "Office31", *, count: int = 6, classes: Sequence[str] = (), inner: str = "images"):
    """Office-31 or Office-Caltech: ``<domain>/images/<class>/frame_0001.jpg``."""
    facts = benchmarks()[name]
    for domain in facts.domains:
        for label in classes or facts.classes[:3]:
            for index in range(count):
                picture(root / domain / inner / label / f"frame_{index:04}.jpg", index)


def image_clef(root: Path, *, count: int = 4, absolute: bool = False) -> None:
    """ImageCLEF-DA: a folder of images for each domain, and lists with numbers."""
    for domain in "bcip":
        lines = []
        for number in range(12):
            for index in range(count):
                name = picture(root / domain / f"{number:03}_{index:04}.jpg", index)
                lines.append(f"{'/home/me/image-clef/' if absolute else ''}{domain}/{name} {number}")
        (root / "list").mkdir(exist_ok=True)
        (root / "list" / f"{domain}{'_list' if absolute else 'List'}.txt").write_text("\n".join(lines))


def visda(root: Path, *, count: int = 3) -> None:
    """VisDA-2017: folders of classes, and a test set in trunks with a list."""
    classes = benchmarks()["VisDA2017"].classes
    lines = []
    for number, label in enumerate(classes):
        for index in range(count):
            picture(root / "train" / label / f"src_{index}.png", index)
            picture(root / "validation" / label / f"val_{index}.jpg", index)
            name = picture(root / "test" / "trunk00" / f"{number}_{index}.jpg", index)
            lines.append(f"trunk00/{name} {number}")
    (root / "train" / "image_list.txt").write_text("aeroplane/src_0.png 0\n")
    (root / "test" / "image_list.txt").write_text("\n".join(lines) + "\n")


def gtsrb(root: Path, *, signs: int = 3, frames: int = 2, classes: int = 3, folder: str = "Final_Training/Images"):
    """GTSRB: folders of classes with a table in each, one folder of test images, and the table of their labels."""
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number in range(classes):
        place = root / "GTSRB" / folder / f"{number:05}"
        for sign in range(signs):
            for frame in range(frames):
                picture(place / f"{sign:05}_{frame:05}.ppm", frame)
        (place / f"GT-{number:05}.csv").write_text(rows[0])
        test = picture(root / "GTSRB" / "Final_Test" / "Images" / f"{number:05}.ppm", number)
        rows.append(f"{test};12;10;1;1;11;9;{number}")
    (root / "GT-final_test.csv").write_text("\r\n".join(rows))


def synsigns(root: Path, *, count: int = 4, classes: int = 3) -> None:
    """SynSigns: a folder of images and the list of their classes."""
    lines = []
    for index in range(count * classes):
        name = picture(root / "synthetic_data" / "train" / f"{index:05}.png", index, (40, 40))
        lines.append(f"train/{name} {index % classes} 0")
    (root / "synthetic_data" / "train_labelling.txt").write_text("\n".join(lines))
