"""Names of domains, classes and rows: in YAML they are the text that is written, ``010``, ``no`` and ``1e3`` too."""

import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import yaml

from dafw.plain_yaml import load_yaml

NAMES = frozenset({"source", "target"})
"""Keys of a configuration whose value is a name or a list of names."""
LISTS = frozenset({"common", "source_private", "target_private"})
"""Keys of a configuration whose value is a number, or a list of names."""
_TEXT, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def quoted(text: str, names: frozenset[str] = NAMES, optional: frozenset[str] = frozenset()) -> str:
    """YAML with quotes around the names that would be read as something else: numbers, dates, truth values, null.

    The names in :data:`LISTS` are among them. Text that is not YAML is returned as it is: who reads it says what is
    wrong.

    >>> quoted("data: {source: [010, no], target: mnist, label_sets: {common: 2, target_private: [1e3]}}")
    'data: {source: ["010", "no"], target: mnist, label_sets: {common: 2, target_private: ["1e3"]}}'

    Args:
        text: a document.
        names: keys below which every scalar is a name.
        optional: keys below which every scalar but null is a name.
    """
    try:
        document = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    parts, done = [], 0
    for node in sorted(_names(document, names, optional), key=lambda node: node.end_mark.index):
        end = node.end_mark.index
        start = end - len(node.value)
        if start >= done and text[start:end] == node.value:  # a name on several lines is read as text
            parts += [text[done:start], json.dumps(node.value, ensure_ascii=False)]
            done = end
    return "".join([*parts, text[done:]])


def _names(document: Any, names: frozenset[str], optional: frozenset[str]) -> Iterator[yaml.ScalarNode]:
    """The scalars without quotes that are names, and that some reader takes for something else."""
    seen: set[tuple[int, str]] = set()
    waiting = [(document, "no name")]
    while waiting:
        node, kind = waiting.pop()
        if node is None or (id(node), kind) in seen:  # an alias may lead back to where it lies
            continue
        seen.add((id(node), kind))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                word = key.value if isinstance(key, yaml.ScalarNode) else ""
                listed = word in LISTS and isinstance(value, yaml.SequenceNode)
                inside = "name" if word in names or listed else "name or null" if word in optional else kind
                waiting.append((value, inside))
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(value, kind) for value in node.value]
        elif kind == "name" or (kind == "name or null" and node.tag != _NULL):
            odd = node.tag != _TEXT or not node.value[:1].isalpha()  # other readers take 1e3 for a number
            if odd and node.value and node.style is None:
                yield node


def value_of(key: str, text: str) -> Any:
    """The value that a text gives to a key, as on the command line: YAML in which names are text.

    Raises:
        yaml.YAMLError: if it is not YAML.
    """
    try:
        return load_yaml(quoted(f"{key}: {text}"))[key]
    except (yaml.YAMLError, KeyError, TypeError):
        return load_yaml(text)


def one_spelling(name: str) -> str:
    """The name in Unicode's composed form: an ``é`` of two characters is the ``é`` of one."""
    return unicodedata.normalize("NFC", name)


def cut(name: str, most: int) -> str:
    """The beginning of a name, in at most so many bytes of UTF-8. It ends with a whole character."""
    return name.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def file_name(name: str) -> str:
    """The last 60 letters of a name for a part of a path: letters, digits, points, ``-`` and ``_``, 120 bytes at most.

    Other characters, such as a slash, become ``_``. Several names may become the same one.

    >>> file_name("../a b.jpg")
    '_._a_b.jpg'
    """
    plain = re.sub(r"[^\w.-]", "_", name)[-60:]
    return re.sub(r"^[.-]", "_", cut(plain[::-1], 120)[::-1]) or "_"
