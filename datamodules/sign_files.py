"""Traffic signs in the files that their authors distribute: SynSigns with a list, GTSRB with folders and a table."""

import csv
from collections.abc import Iterator
from pathlib import Path

from dafw.data.entries import Entries, PassedOver
from dafw.data.manifest import contents
from dafw.errors import UserError
from dafw.files import reading

LABELS = "GT-final_test.csv"
"""The table with the labels of GTSRB's test images."""
_TRAINING = ("Final_Training/Images", "Final_Training", "Training")
_TEST = ("Final_Test/Images", "Final_Test")
_Rows = Iterator[tuple[str, str | None, str, str | None]]


def list_signs(folder: Path, home: Path, name: str) -> Entries:
    """The images of one domain, with paths relative to ``home``. A class is its number, from 0 to 42.

    * ``synsigns``: ``train_labelling.txt`` says "path number ..." on each line.
    * ``gtsrb``: the training images are in a folder for each class. Those of the test are in one folder, and
      ``GT-final_test.csv`` says their classes; it may lie in that folder or in one above it. Their entries have the
      splits ``train`` and ``test``.

    Args:
        folder: the domain's folder.
        home: the folder of the domains.
        name: ``synsigns`` or ``gtsrb``.

    Raises:
        UserError: if a list or a table is missing or has the wrong format.
    """
    passed = PassedOver()
    if name == "synsigns":
        inner = folder / "synthetic_data"
        return Entries.of_rows(_synsigns(inner if inner.is_dir() else folder, home, name), passed)
    return Entries.of_rows(_gtsrb(folder, home, name, passed), passed)


def _synsigns(folder: Path, home: Path, name: str) -> _Rows:
    listing, inside = folder / "train_labelling.txt", folder.relative_to(home).as_posix()
    if not listing.is_file():
        raise UserError(
            f"{listing} is missing, which says the classes of the images of {name}: unpack all of its archive"
        )
    for number, line in enumerate(read_lines(listing), 1):
        cells = line.split()
        if cells and (len(cells) < 2 or not cells[1].isdecimal()):
            raise UserError(f'{listing}, line {number}: expected "path number", not "{line.strip()}"')
        if cells:
            yield f"{inside}/{cells[0]}", str(int(cells[1])), name, None


def _gtsrb(folder: Path, home: Path, name: str, passed: PassedOver) -> _Rows:
    tops = [folder, folder / "GTSRB"]
    training = next((top / one for top in tops for one in _TRAINING if (top / one).is_dir()), None)
    if training is not None:
        inside = training.relative_to(home).as_posix()
        for label in contents(training, inside, passed)[1]:
            own = PassedOver()
            images = contents(training / label, f"{inside}/{label}", own)[0]
            own.found.pop("files ending in .csv", None)  # a table of sizes in each folder
            passed.merge(own)
            known = str(int(label)) if label.isdecimal() else label
            yield from ((f"{inside}/{label}/{image}", known, name, "train") for image in images)
    test = next((top / one for top in tops for one in _TEST if (top / one).is_dir()), None)
    if test is None:
        return
    places = [one for one in (test, *test.parents) if one.is_relative_to(home)]
    table = next((one / LABELS for one in places if (one / LABELS).is_file()), None)
    if table is None:
        raise UserError(
            f"no {LABELS} lies in {test} or above it, which says the classes: unpack GTSRB_Final_Test_GT.zip"
        )
    yield from _tested(table, test.relative_to(home).as_posix(), name)


def _tested(table: Path, inside: str, name: str) -> _Rows:
    rows = csv.DictReader(read_lines(table), delimiter=";", skipinitialspace=True)
    for row in rows:
        image, label = row.get("Filename"), row.get("ClassId")
        if not image or not label or not label.isdecimal():
            raise UserError(f'{table}, line {rows.line_num}: expected columns "Filename" and "ClassId" between ";"')
        yield f"{inside}/{image}", str(int(label)), name, "test"


def read_lines(path: Path) -> list[str]:
    """The lines of a list of images.

    Raises:
        UserError: if it cannot be read, or is no text.
    """
    try:
        with reading("the list", path):
            return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} cannot be read: {error}") from error
