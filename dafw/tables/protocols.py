"""How numbers were made: the streams of a table's rows, and published numbers that were made in another way."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from dafw.escape import named
from dafw.run.stream_result import Setting
from dafw.tables.published import UNKNOWN, Published
from dafw.tables.store import Store

COMPARED = ("stream", "stream_order", "batch_size", "images_per_domain", "knows_shifts", "normalisation")
"""The settings without which two numbers on a stream do not compare. The others are a part of the method."""
BACKBONES = {
    "ResNet-50": ("resnet50", "resnet50d"),
    "ResNet-101": ("resnet101", "resnet101d"),
    "SE-ResNet-50": ("seresnet50",),
    "CLIP ViT-B/16": ("vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224"),
}
"""By the name in publications, the names of backbones without their weights."""


def other_protocols(store: Store) -> dict[str, str]:
    """By row, in which settings its streams differ from those of most runs; rows that do not differ are left out."""
    runs = _runs(store)
    if not runs:
        return {}
    usual = {name: _most([found[name] for _, found in runs]) for name in COMPARED}
    differ: dict[str, list[str]] = {}
    for row, found in runs:
        said = differ.setdefault(row, [])
        said += [
            one for name in COMPARED if found[name] != usual[name] and (one := _said(name, found[name])) not in said
        ]
    return {row: ", ".join(said) for row, said in differ.items() if said}


def published_differences(store: Store, row: str, one: Published, criterion: str) -> list[str]:
    """In what a published number was made in another way than a row, in words.

    What is not known of either is not compared. A number that labels of the target chose has a mark of its own.
    """
    theirs = {name: value for name, value in one.protocol.items() if value != UNKNOWN}
    ours = next((found for name, found in _runs(store) if name == row), None)
    if ours is not None:
        names = [name for name in COMPARED if name in theirs and not _same(name, ours[name], theirs[name])]
        return [_said(name, theirs[name]) for name in names]
    config = store.table.config_of(row)
    if config is None:
        return []
    return [*_of_network(config, one.backbone), *_of_selection(criterion, one.selection), *_of_data(config, theirs)]


def _of_network(config: Mapping[str, Any], theirs: str) -> list[str]:
    """Another backbone of those that both have a name for."""
    given = config.get("model", {}).get("init_args", {}).get("network") or {}
    ours = given.get("init_args", {}).get("backbone")
    if theirs not in BACKBONES or not isinstance(ours, str):
        return []
    return [] if ours.partition(".")[0].removeprefix("legacy_") in BACKBONES[theirs] else [theirs]


def _of_selection(criterion: str, theirs: str) -> list[str]:
    ours = "source" if criterion.startswith("source_") else criterion
    words = {"last": "the last epoch", "source": "chosen by held-out samples of the sources"}
    return [words[theirs]] if theirs in words and theirs != ours else []


def _of_data(config: Mapping[str, Any], theirs: Mapping[str, Setting]) -> list[str]:
    """Batches of another size, and other images than a row that limits them, or that tests on all of a target."""
    ours = config.get("data", {}).get("init_args", {})
    found = []
    if isinstance(size := theirs.get("batch_size"), int) and ours.get("batch_size", size) != size:
        found.append(_said("batch_size", size))
    count = ours.get("images_per_domain")
    known = "images_per_domain" in theirs and (count is not None or ours.get("protocol") == "office")
    if known and theirs["images_per_domain"] != count:
        found.append(_said("images_per_domain", theirs["images_per_domain"]))
    return found


def _same(name: str, ours: Setting, theirs: Setting) -> bool:
    """Whether two settings are one. Of a list of images a publication names the number alone: ``5000 listed``."""
    return ours == theirs or (name == "images_per_domain" and f"{ours}".startswith(f"{theirs} in "))


def published_sentences(store: Store) -> list[str]:
    """Which published numbers were made in another way than their rows."""
    differ: dict[str, list[str]] = {}
    for row in store.table.rows:
        for one in store.table.published if row.control_of is None else ():
            if (one.method, one.metric) != (row.published, store.table.metric):
                continue
            for criterion in store.table.select:
                known = differ.setdefault(f"{named(row.name)} in {one.source}", [])
                known += [said for said in published_differences(store, row.name, one, criterion) if said not in known]
    found = "; ".join(f"{name} ({', '.join(how)})" for name, how in differ.items() if how)
    return [f"Published numbers marked (other protocol) do not compare with their rows: {found}."] if found else []


def protocol_sentences(store: Store) -> list[str]:
    """What a caption says of the streams: the protocol, the rows with another one, and what of the source was used."""
    runs = _runs(store)
    if not runs:
        return []
    usual = [_said(name, _most([found[name] for _, found in runs])) for name in COMPARED]
    others = other_protocols(store)
    said = "; ".join(f"{named(row)} ({how})" for row, how in others.items())
    resets = grouped((row, str(found["reset"])) for row, found in runs)
    used = grouped((row, str(found["source_use"])) for row, found in runs)
    return [
        f"Stream: {', '.join(usual)}. What was served counts, before anything was learned of it.",
        f"Rows marked (other protocol) do not compare with the others: {said}." if said else "",
        f"Return to the start: {resets}.",
        f"Used of the source on the stream: {used}.",
        "The labels of the stream decide its order, and reach no method."
        if any(found["ordered_by_labels"] for _, found in runs)
        else "",
    ]


def _runs(store: Store) -> list[tuple[str, dict[str, Setting]]]:
    """Row and protocol of each run on a stream, in the order of the rows."""
    order = [row.name for row in store.table.rows]
    found = [(key[0], result.run.stream) for key, result in store.results.items()]
    known = [(row, dict(one.protocol)) for row, one in found if one is not None]
    return sorted(known, key=lambda pair: order.index(pair[0]))


def _most(values: Iterable[Setting]) -> Setting:
    return Counter(values).most_common(1)[0][0]


def _said(name: str, value: Setting) -> str:
    """A setting in words."""
    count = f"{value:,}" if isinstance(value, int) else f"{value}"
    words = {
        "stream": f"{value}",
        "stream_order": "a random order" if value == "random" else "the order that the data has",
        "batch_size": f"batches of {value}",
        "images_per_domain": "all images of a domain" if value is None else f"{count} images of each domain",
        "knows_shifts": "knows the shifts" if value else "does not know the shifts",
        "normalisation": f"images normalised by {value}",
    }
    return words[name]


def grouped(pairs: Iterable[tuple[str, str]]) -> str:
    """Values with their rows in words, from pairs of a row and its value."""
    rows: dict[str, list[str]] = {}
    for row, value in pairs:
        known = rows.setdefault(value, [])
        known += [] if row in known else [row]
    return "; ".join(f"{value}: {named(*names)}" for value, names in rows.items())
