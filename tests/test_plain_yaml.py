"""YAML of plain values, and what is refused before anything else reads it."""

import pytest
import yaml

from dafw.plain_yaml import bracket_depth, load_yaml


def test_plain_values() -> None:
    assert load_yaml("{a: [1, 2.5, true, null], b: word, 3: x}") == {"a": [1, 2.5, True, None], "b": "word", 3: "x"}
    assert load_yaml("day: 2024-01-01") == {"day": "2024-01-01"}
    assert load_yaml("a: &a [1]\nb: [*a, *a]") == {"a": [1], "b": [[1], [1]]}
    assert load_yaml("") is None


def test_depth() -> None:
    assert load_yaml("[" * 101 + "]" * 101)
    assert bracket_depth("[1, {a: [2]}], [3]") == 3
    assert bracket_depth("]]") == 0


LAUGHS = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 10)}]\n" for i in range(7)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("[" * 2000 + "]" * 2000, "nested too deeply", id="deep"),
        pytest.param("[" * 102 + "]" * 102, "nested too deeply", id="a-little-too-deep"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: &a {b: *a}", "nested too deeply"),
        pytest.param(LAUGHS, "aliases stand for more than", id="laughs"),
        ("a: !!set {b, c}", "is a set"),
        ("a: !!binary aGk=", "is a bytes"),
        pytest.param(f"a: {'1' * 5000}", "digits", id="digits"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: [1", "expected"),
    ],
)
def test_what_is_not_plain(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError, match=said):
        load_yaml(text)
