"""A target's images by an explicit list, of names or numbers, and what a result says of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dafw.data import Domain
from dafw.data.roles import Split
from dafw.data.strings import Strings
from dafw.errors import UserError
from dafw.methods import Tent
from dafw.run.stream_record import protocol_of
from dafw.testing import case
from dafw.testing.toys import ToyData
from datamodules.image_list import ImageList


class Named(ToyData):
    """Toys whose samples have the names of files in folders."""

    def load(self, name: str, split: Split) -> Domain:
        """The toys with other names."""
        found = super().load(name, split)
        names = [f"{name}/5/n{index % 3}/{index:04d}.JPEG" for index in range(len(found))]
        return replace(found, ids=Strings.of(names))


def listed(folder: Path, *lines: str) -> str:
    path = folder / "ids.txt"
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return str(path)


def ids(data: ToyData, name: str) -> list[str]:
    domain = data.domain(name, "test")
    return [domain.id(index) for index in range(len(domain))]


def test_a_list_of_names_chooses_the_same_images_of_every_target(tmp_path: Path) -> None:
    images = listed(tmp_path, "n2/0005.JPEG", "n1/0001.JPEG")
    data = Named("a", ["b", "c"], batch_size=2, images=images)
    assert ids(data, "b") == ["b/5/n2/0005.JPEG", "b/5/n1/0001.JPEG"]
    assert ids(data, "c") == ["c/5/n2/0005.JPEG", "c/5/n1/0001.JPEG"]
    assert len(data.domain("a", "test")) == 21
    assert len(data.domain("b", "train")) == 40


def test_a_list_of_numbers_chooses_positions(tmp_path: Path) -> None:
    data = ToyData("a", "b", batch_size=2, images=listed(tmp_path, "7", "0", "3"))
    assert ids(data, "b") == ["b/7", "b/0", "b/3"]


def test_a_stream_serves_the_list_and_its_protocol_says_so(tmp_path: Path) -> None:
    given = {"images": listed(tmp_path, "7", "0", "3", "5"), "source": "a", "target": ["b"], "target_batch_size": 2}
    method, _ = case(Tent, data_arguments=given).train(tmp_path)
    assert isinstance(method, Tent)
    assert len(method.served.keys) == 4
    said = protocol_of(method, method.data)["images_per_domain"]
    other = ImageList(listed(tmp_path, "7", "0", "3", "6")).described
    assert str(said).startswith("4 listed in ids.txt (")
    assert said != other


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        ([""], {}, "is empty"),
        (["3", "3"], {}, "names 3 twice"),
        (["n0/0000.JPEG", "none.JPEG", "no.JPEG"], {}, r"lists none.JPEG and 1 more, which the 21 test samples of b"),
        (["21"], {}, "lists 21, which the 21 test samples of b do not have"),
        (["0"], {"images_per_domain": 3}, "give one"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    lines: list[str], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        Named("a", "b", images=listed(tmp_path, *lines), **options).domain("b", "test")


def test_a_name_of_two_samples_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    class Twins(ToyData):
        """Two folders with files of the same names."""

        def load(self, name: str, split: Split) -> Domain:
            """The toys with other names."""
            found = super().load(name, split)
            return replace(found, ids=Strings.of([f"{index % 2}/{index // 2}.png" for index in range(len(found))]))

    with pytest.raises(UserError, match=r"the end of two names of b: 0/3.png and 1/3.png"):
        Twins("a", "b", images=listed(tmp_path, "3.png")).domain("b", "test")
    with pytest.raises(UserError, match=r"data.images\) .*nothing.txt does not exist"):
        ToyData("a", "b", images=str(tmp_path / "nothing.txt"))
