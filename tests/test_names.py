"""Names in YAML, in file names and in Unicode."""

from typing import Any

import pytest
import yaml

from dafw.names import cut, file_name, one_spelling, quoted, value_of

NUMBERS = ["100", "010", "no", "on", "1e3", "2020-01-01", "null", "~", "0x10", ".5", "1_000", "12:30", "true", "-90%"]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_name_in_yaml_is_what_is_written(name: str) -> None:
    for form in ("source: {}", "{{data: {{init_args: {{source: {}}}}}}}", "source: # why\n  {}  # so"):
        found = yaml.safe_load(quoted(form.format(name)))
        while isinstance(found, dict):
            found = next(iter(found.values()))
        assert found == name
    text = quoted(f"target: [{name}, 'x', {name}]\nlabel_sets:\n  common:\n  - {name}\n  source_private: 10\n")
    assert yaml.safe_load(text) == {
        "target": [name, "x", name],
        "label_sets": {"common": [name], "source_private": 10},
    }


def test_every_dump_is_read_back_by_any_reader() -> None:
    """YAML 1.2 and other readers take ``1e3`` for a number, so quotes stand around it."""
    given = {"data": {"source": NUMBERS, "target": "1e3", "size": 8}}
    text = quoted(yaml.safe_dump(given))
    assert yaml.safe_load(text) == given
    assert text.count('"1e3"') == 2
    assert "size: 8" in text


def test_what_is_no_name_stays() -> None:
    text = "seed: 010  # source: no\nsize: [1, no]\ncommon: 3\nname: 5\nnote: |\n  source: 010\n"
    assert quoted(text) == text
    assert yaml.safe_load(quoted("source:\ntarget: ''\n")) == {"source": None, "target": ""}
    assert quoted("name: ~\ntitle: ~\n", frozenset({"name"}), frozenset({"title"})) == 'name: "~"\ntitle: ~\n'


@pytest.mark.parametrize("text", ["source: [", "source: \x00", "- a\nb", "&a [*a]", "source: !!int 5", ""])
def test_text_that_is_no_configuration_is_left_to_its_reader(text: str) -> None:
    assert quoted(text) in (text, text.replace("5", '"5"'))


def test_anchors_are_kept() -> None:
    assert yaml.safe_load(quoted("a: &x [010, &y no]\nsource: *x\ntarget: *y\n")) == {
        "a": ["010", "no"],
        "source": ["010", "no"],
        "target": "no",
    }
    many = "a0: &a0 [010]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert quoted(f"{many}source: *a29\n").startswith('a0: &a0 ["010"]')


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("common", "[010, no]", ["010", "no"]),
        ("source", "a: b", {"a": "b"}),
        ("lr", "0.5", 0.5),
        ("label_sets", "{common: [1e3], source_private: 2}", {"common": ["1e3"], "source_private": 2}),
    ],
)
def test_values_as_on_the_command_line(key: str, text: str, value: Any) -> None:
    assert value_of(key, text) == value


def test_names_are_cut_between_characters() -> None:
    assert cut("漢" * 80, 120) == "漢" * 40
    assert cut("漢" * 80, 121) == "漢" * 40
    assert cut("abc", 120) == "abc"
    assert len(file_name("\N{CJK UNIFIED IDEOGRAPH-20000}" * 90).encode()) == 120
    assert file_name("../../stolen") == "_._.._stolen"
    assert "/" not in file_name("/abs/x")
    assert file_name("") == "_"


def test_two_spellings_of_a_letter_are_one() -> None:
    assert one_spelling("cafe\u0301") == "caf\u00e9" == one_spelling("caf\u00e9")
