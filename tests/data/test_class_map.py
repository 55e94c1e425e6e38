"""What the numbers and colours of mask files stand for."""

from pathlib import Path

import numpy as np
import pytest

from dafw.data.class_map import ClassMap
from dafw.errors import UserError


def read(folder: Path, text: str, **options) -> ClassMap:
    path = folder / "classes.yaml"
    path.write_text(text)
    return ClassMap.read(path, **options)


def test_numbers(tmp_path: Path) -> None:
    for text in ("7: road\n11: house\n0: null\n", "road: 7\nhouse: [11]\n"):
        found = read(tmp_path, text, ignored=(255, 0))
        assert (found.names, found.colours) == (("road", "house"), False)
        raw = np.asarray([[7, 11, 0, 255, 3]])
        for dtype in (np.uint8, np.uint16, np.int32):
            assert found.encode(raw.astype(dtype)).tolist() == [[0, 1, 255, 255, 254]]
        assert found.encode(np.asarray([[300, 65535]], np.uint16)).tolist() == [[254, 254]]
        assert found.unknown({7: 4, 3: 2, 4: 9, 255: 1}) == ("the id 4", 9)
        assert found.unknown({7: 4, 255: 1}) is None
        assert found.counts({7: 4, 11: 2, 255: 9, 4: 1}).tolist() == [4, 2]


def test_several_numbers_of_one_class_and_a_list(tmp_path: Path) -> None:
    found = read(tmp_path, "thing: [1, 3]\nground: 0\n255: null\n".replace("255: null\n", ""))
    assert found.encode(np.asarray([0, 1, 2, 3, 255], np.uint8)).tolist() == [1, 0, 254, 0, 255]
    assert read(tmp_path, "[ground, thing]").names == ("ground", "thing")
    assert ClassMap.of_names(["a", "b"]).encode(np.asarray([0, 1, 255], np.uint8)).tolist() == [0, 1, 255]


def test_a_number_that_is_named_is_not_ignored(tmp_path: Path) -> None:
    found = read(tmp_path, "0: ground\n255: cell\n")
    assert found.encode(np.asarray([0, 255, 1], np.uint8)).tolist() == [0, 1, 254]


def test_colours(tmp_path: Path) -> None:
    found = read(tmp_path, '"#804080": road\n"0, 0, 142": car\n"#000000": null\n')
    assert (found.names, found.colours) == (("road", "car"), True)
    raw = np.asarray([0x804080, 0x00008E, 0, 0xFFFFFF], np.uint32)
    assert found.encode(raw).tolist() == [0, 1, 255, 254]
    assert found.unknown({0x804080: 1, 0x010203: 5}) == ("the colour #010203", 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0: a\n0: b\n", 'names "0" twice'),
        ("0: a\n1: a\n", r'names "a" twice, for 0 and 1: .* "a: \[0, 1\]"'),
        ("a: 0\nb: 0\n", "names 0 twice"),
        ("a: 0\na: 1\n", 'names "a" twice'),
        ('0: a\n"#804080": b\n', "has both numbers and colours"),
        ("a: 70000\n", 'has "70000", which is neither a number from 0 to 65535 nor a colour'),
        ("a: '300,0,0'\n", "of which a part is above 255"),
        ("0: null\n", "names no class"),
        ("0: [a]\n", "must give one name for each number or colour"),
        ("a\n", "must say for each number or colour the name of its class"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_wrong_maps_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(tmp_path, text)


def test_wrong_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'data\.classes names "a" twice'):
        ClassMap.of_names(["a", "b", "a"])
    with pytest.raises(UserError, match=r"the map of classes .*none\.yaml does not exist"):
        ClassMap.read(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="masks hold 254 at most"):
        ClassMap.of_names([str(i) for i in range(255)])


def test_another_order_of_the_same_classes() -> None:
    found = ClassMap.of_names(["a", "b"]).reordered(["b", "a"], "day")
    assert found.encode(np.asarray([0, 1, 255], np.uint8)).tolist() == [1, 0, 255]
    with pytest.raises(UserError, match='lacks the class "c", which other domains than day have'):
        ClassMap.of_names(["a", "b"]).reordered(["a", "b", "c"], "day")
    with pytest.raises(UserError, match='has the class "b", which other domains than day lack'):
        ClassMap.of_names(["a", "b"]).reordered(["a"], "day")
