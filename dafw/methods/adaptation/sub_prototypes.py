"""What the sub-prototypes of a memory stand for: numbers where styles are known, and the images nearest to them.

Both are of a finished training's test and use the labels of the target's test split; nothing is trained or selected.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dafw.evaluation.columns import TestColumns
from dafw.metrics.styles import StyleSplit, mean_split, style_split
from dafw.nn.consensus import kmeans
from dafw.nn.memory import Read

if TYPE_CHECKING:
    from dafw.plots import Examples
    from datamodules.base import DomainDataModule


class Retrieved(NamedTuple):
    """What a memory read for n samples.

    Attributes:
        codes: (n,) int64, item * S + sub-prototype of the largest weight; -1 if a fixed threshold let none pass.
        weights: (n,), that weight.
        query: (n, D), the embedding that was compared.
        labels: (n,) int64.
        index: (n,) int64, position in the domain.
    """

    codes: Tensor
    weights: Tensor
    query: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]

    @classmethod
    def of(cls, found: Read, labels: Tensor, index: Tensor) -> "Retrieved":
        """The strongest of each row of a reading."""
        return cls(**retrieved_columns(found), labels=labels, index=index)

    @classmethod
    def joined(cls, parts: "Sequence[Retrieved]") -> "Retrieved":
        """Several, one after the other."""
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


def retrieved_columns(found: Read) -> dict[str, Tensor]:
    """The strongest item of each row of a reading: ``codes``, ``weights`` and ``query`` of :class:`Retrieved`."""
    weights, codes = found.weights.flatten(1).max(1)
    return {"codes": codes.masked_fill(weights == 0, -1), "weights": weights, "query": found.query}


def memory_columns(found: Read) -> dict[str, Tensor]:
    """Of each row of a reading its ``entropy``, see :meth:`Read.entropy`, and its ``embedding``."""
    return {"entropy": found.entropy(), "embedding": found.embedding}


def memory_numbers(targets: Sequence[TestColumns], most: int = 10000) -> dict[str, float]:
    """How selective a memory is, and how well classes form clusters before and behind it.

    k-means makes as many clusters as there are labels, from the directions of the embeddings; unknown is one label.

    Args:
        targets: for each target the columns of :func:`memory_columns` and ``query``, and the labels.
        most: how many samples k-means sees, evenly spaced.

    Returns:
        ``memory_entropy``, the mean of :meth:`Read.entropy`, and the normalised mutual information of clusters and
        labels: ``memory_nmi`` for what is read, ``memory_query_nmi`` for what is asked with.
    """
    from sklearn.metrics import normalized_mutual_info_score

    if not targets:
        return {}
    labels = torch.cat([one.labels for one in targets]).cpu()
    rows = slice(None, None, max(1, -(-len(labels) // most)))
    labels = labels[rows]
    found = {"memory_entropy": float(torch.cat([one.columns["entropy"] for one in targets]).double().mean())}
    for name, column in (("memory_nmi", "embedding"), ("memory_query_nmi", "query")):
        units = F.normalize(torch.cat([one.columns[column] for one in targets])[rows].cpu().double(), dim=1)
        codes = kmeans(units, min(len(np.unique(labels.numpy())), len(units)))[1]
        found[name] = float(normalized_mutual_info_score(labels.numpy(), codes.numpy()))
    return found


def style_numbers(
    domains: Sequence[Retrieved], class_names: Sequence[str], most: int = 2000
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """How far the sub-prototypes split the samples of a class by style, which is their domain.

    Each sample is in the group of its sub-prototype. A class that only one domain has leaves nothing to split, and
    counts nowhere. The control has as many clusters of the same class's queries, by k-means on ``most`` of them.

    Args:
        domains: of each target, in order of its samples.
        class_names: of the labels; one behind them is unknown, whose classes count as one.
        most: how many queries of a class k-means sees, evenly spaced; the others join the nearest cluster.

    Returns:
        ``sub_prototype_purity``, ``sub_prototype_baseline``, ``sub_prototype_ami`` (:class:`~dafw.metrics.StyleSplit`)
        and the control's ``sub_prototype_kmeans_purity`` and ``sub_prototype_kmeans_ami``, each weighted by samples
        over classes; then the same by class, with its ``samples`` and ``groups``. Both empty if no class is in two
        domains.
    """
    whole = Retrieved.joined(domains)
    codes, labels = whole.codes.cpu().numpy(), whole.labels.cpu().numpy()
    styles = np.repeat(np.arange(len(domains)), [len(domain.codes) for domain in domains])
    query = whole.query.cpu()
    found: dict[str, tuple[StyleSplit, StyleSplit]] = {}
    for label, name in enumerate((*class_names, "unknown")):
        rows = np.flatnonzero(labels == label)
        if len(np.unique(styles[rows])) < 2:
            continue
        own = style_split(codes[rows], styles[rows])
        queries = query[torch.from_numpy(rows)]
        seen = queries[:: -(-len(rows) // most)]
        centres, _ = kmeans(seen, min(own.groups, len(seen)))
        found[name] = own, style_split(torch.cdist(queries, centres).argmin(1).numpy(), styles[rows])
    if not found:
        return {}, {}
    own, clustered = (mean_split(splits) for splits in zip(*found.values(), strict=True))
    by_class = {
        name: {"samples": float(one.samples), "groups": float(one.groups), **_named(one, other)}
        for name, (one, other) in found.items()
    }
    return _named(own, clustered), by_class


def _named(own: StyleSplit, clustered: StyleSplit) -> dict[str, float]:
    return {
        "sub_prototype_purity": own.purity,
        "sub_prototype_baseline": own.baseline,
        "sub_prototype_ami": own.ami,
        "sub_prototype_kmeans_purity": clustered.purity,
        "sub_prototype_kmeans_ami": clustered.ami,
    }


def most_used(
    codes: NDArray[np.int64], weights: NDArray[np.float64], groups: int, each: int
) -> list[tuple[int, int, NDArray[np.int64]]]:
    """The codes that most samples have, the smaller of equal ones first: code, count, and the strongest samples.

    Args:
        codes: (n,); -1 is none.
        weights: (n,).
        groups: how many codes at most.
        each: how many samples of each at most; the heaviest first, of equal ones the first.
    """
    names, counts = np.unique(codes[codes >= 0], return_counts=True)
    chosen = np.argsort(-counts, kind="stable")[:groups]
    order = np.argsort(-weights, kind="stable")
    return [(int(names[i]), int(counts[i]), order[codes[order] == names[i]][:each]) for i in chosen]


@torch.no_grad()
def examples(
    read: Callable[[Tensor], Read],
    data: "DomainDataModule",
    device: torch.device,
    *,
    classes: int = 6,
    groups: int = 4,
    each: int = 8,
    samples: int = 200,
    size: int = 64,
) -> "list[Examples]":
    """Of the targets' test samples of a class those that are nearest to its most used sub-prototypes.

    Labels of the target's test split say which class a sample is of.

    Args:
        read: what a memory reads for images (N, C, H, W).
        data: whose targets are shown.
        device: of the memory.
        classes: how many classes are shown, those with most samples; where there are ten or fewer, all.
        groups: sub-prototypes of each class.
        each: images of each.
        samples: of each class and target that are looked at, evenly spaced in its order.
        size: images are made smaller to this many pixels.

    Returns:
        A panel for each class, unknown the last; none if the inputs are no images, or if no target has labels.
    """
    from dafw.plots import ExampleRow, Examples

    names = (*data.known_names, "unknown")
    domains = [domain for name in data.target if (domain := data.domain(name, "test")).labels is not None]
    if not domains:
        return []
    labels = [np.asarray(domain.labels) for domain in domains]
    totals = np.bincount(np.concatenate(labels), minlength=len(names))
    shown = np.argsort(-totals, kind="stable")[: classes if len(data.known_names) > 10 else len(names)]
    panels = []
    for label in sorted(code for code in shown.tolist() if totals[code]):
        parts, images, styles = [], [], []
        for style, (domain, own) in enumerate(zip(domains, labels, strict=True)):
            rows = np.flatnonzero(own == label)
            rows = rows[:: max(1, -(-len(rows) // samples))]
            for batch in data.evaluation_loader(domain.subset(rows), shard=False) if len(rows) else ():
                x = batch.x.to(device)
                if x.ndim != 4:
                    return []
                found = read(x)
                images.append(_small(x, size))
                parts.append(Retrieved.of(found, batch.y.to(device), batch.index.to(device)))
                styles += [style] * len(batch)
        whole, pixels, count = Retrieved.joined(parts), torch.cat(images).numpy(), found.weights.shape[2]
        codes, weights = whole.codes.cpu().numpy(), whole.weights.cpu().double().numpy()
        chosen = most_used(codes, weights, groups, each)
        lines = []
        for code, number, rows in chosen:
            title = f"{code // count}.{code % count}" if count > 1 else f"{code}"
            lines.append(ExampleRow(title, number, pixels[rows], [domains[styles[row]].name for row in rows]))
        panels.append(Examples(names[label], len(codes), len(np.unique(codes[codes >= 0])), lines))
    return panels


def _small(x: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W), uint8 or in [0, 1], as (N, h, w, 3) in [0, 1] on the host, h and w at most ``size``."""
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    height, width = x.shape[2:]
    if max(height, width) > size:
        factor = size / max(height, width)
        shape = max(1, round(height * factor)), max(1, round(width * factor))
        x = F.interpolate(x, shape, mode="bilinear", antialias=True)
    colour = x if x.shape[1] == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return colour.clamp(0, 1).permute(0, 2, 3, 1).cpu()
