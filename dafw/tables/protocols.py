"""The protocols of streams in one table: what all rows share, and the rows that differ."""

from collections import Counter
from collections.abc import Iterable

from dafw.escape import named
from dafw.run.stream_result import Setting
from dafw.tables.published import Published
from dafw.tables.store import Store

COMPARED = ("stream", "stream_order", "batch_size", "images_per_domain", "knows_shifts", "normalisation")
"""The settings without which two numbers on a stream do not compare. The others are a part of the method."""


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


def published_differences(store: Store, row: str, one: Published) -> list[str]:
    """In which settings a published number was made on another stream than a row, in words; empty before its runs."""
    ours = next((found for name, found in _runs(store) if name == row), None)
    if ours is None:
        return []
    theirs = one.protocol
    return [
        _said(name, theirs[name]) for name in COMPARED if name in theirs and not _same(name, ours[name], theirs[name])
    ]


def _same(name: str, ours: Setting, theirs: Setting) -> bool:
    """Whether two settings are one. Of a list of images a publication names the number alone: ``5000 listed``."""
    return ours == theirs or (name == "images_per_domain" and f"{ours}".startswith(f"{theirs} in "))


def _published_sentence(store: Store) -> str:
    """Which published numbers were made on another stream than their rows."""
    differ: dict[str, list[str]] = {}
    for row in store.table.rows:
        for one in store.table.published if row.control_of is None else ():
            if one.method == row.published and (how := published_differences(store, row.name, one)):
                differ.setdefault(f"{named(row.name)} in {one.source}", how)
    said = "; ".join(f"{name} ({', '.join(how)})" for name, how in differ.items())
    return f"Published numbers marked (other protocol) do not compare with their rows: {said}." if said else ""


def protocol_sentences(store: Store) -> list[str]:
    """What a caption says of the streams: the protocol, the rows with another one, and what of the source was used."""
    runs = _runs(store)
    if not runs:
        return []
    usual = [_said(name, _most([found[name] for _, found in runs])) for name in COMPARED]
    others = other_protocols(store)
    said = "; ".join(f"{named(row)} ({how})" for row, how in others.items())
    resets = _grouped((row, str(found["reset"])) for row, found in runs)
    used = _grouped((row, str(found["source_use"])) for row, found in runs)
    return [
        f"Stream: {', '.join(usual)}. What was served counts, before anything was learned of it.",
        f"Rows marked (other protocol) do not compare with the others: {said}." if said else "",
        f"Return to the start: {resets}.",
        f"Used of the source on the stream: {used}.",
        _published_sentence(store),
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


def _grouped(pairs: Iterable[tuple[str, str]]) -> str:
    rows: dict[str, list[str]] = {}
    for row, value in pairs:
        known = rows.setdefault(value, [])
        known += [] if row in known else [row]
    return "; ".join(f"{value}: {named(*names)}" for value, names in rows.items())
