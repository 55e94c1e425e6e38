"""Clusters of a target against classes of a source."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.nn.consensus import Clusters, class_centres, cluster, consensus_scores, kmeans, match, search


def blobs(classes: list[int], rows: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors around the axes that the classes are."""
    labels = torch.tensor(classes).repeat_interleave(rows)
    noise = 0.2 * torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(seed))
    return F.normalize(F.one_hot(labels, 8) + noise, dim=1), labels


def test_centres_are_of_the_classes_that_occur() -> None:
    features, labels = blobs([5, 1])
    centres, classes = class_centres(features, labels)
    assert classes.tolist() == [1, 5]
    torch.testing.assert_close(centres[1], F.normalize(features[labels == 5].mean(0), dim=0))


def test_matching_is_one_to_one() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        pairs = match(torch.randn(7, 3, generator=draw), torch.randn(5, 3, generator=draw))
        assert len(pairs) >= 1
        for side in (0, 1):
            assert len(pairs[:, side].unique()) == len(pairs)


def test_identical_clusterings_agree_wholly() -> None:
    features, labels = blobs([0, 1, 2])
    centres, _ = class_centres(features, labels)
    pairs = match(centres, centres)
    assert pairs.tolist() == [[0, 0], [1, 1], [2, 2]]
    scores = consensus_scores(pairs, (features, labels, centres), (features, labels, centres))
    assert scores.tolist() == [1.0, 1.0, 1.0]


def test_classes_that_both_have_are_found() -> None:
    source, labels = blobs([0, 2, 4, 6])
    target, truth = blobs([2, 4, 5, 7], seed=1)
    found = cluster(target, source, labels, 4)
    names = {int(j): int(i) for i, j in found.pairs.tolist()}
    for true in (2, 4):
        codes = found.codes[truth == true].unique()
        assert len(codes) == 1
        assert names[int(codes)] == true
    assert len(found.codes.unique()) == 4


def scored(scores: dict[int, float]) -> tuple[list[int], "object"]:
    asked: list[int] = []

    def make(k: int) -> Clusters:
        asked.append(k)
        return Clusters(torch.empty(0), torch.empty(k, 1), torch.empty(0, 2), scores[k])

    return asked, make


@pytest.mark.parametrize(
    ("values", "best", "tried"),
    [
        ([0.1, 0.5, 0.4, 0.5, 0.3], 4, 5),  # the first of equals
        ([0.1, 0.2, 0.3, 0.4, 0.5], 10, 5),
        ([0.5, 0.4, 0.4, 0.3, 0.9], 2, 4),  # three in a row that are no better
        ([0.9, 0.1, 0.5, 0.4, 0.4, 0.4, 1.0], 6, 6),  # and what was before them, not the best
    ],
)
def test_search(values: list[float], best: int, tried: int) -> None:
    asked, make = scored(dict(zip(range(2, 100, 2), values, strict=False)))
    found = search(make, 2, 2 * len(values), 2)  # type: ignore[arg-type]
    assert len(found.centres) == best
    assert asked == list(range(2, 2 + 2 * tried, 2))


def test_search_tries_one_k_at_least() -> None:
    asked, make = scored({9: 0.0})
    assert len(search(make, 9, 4, 2).centres) == 9  # type: ignore[arg-type]
    assert asked == [9]


def test_a_warm_start_keeps_the_order_of_the_clusters() -> None:
    features, labels = blobs([3, 0, 7])
    centres, classes = class_centres(features, labels)
    order = torch.tensor([2, 0, 1])
    found, codes = kmeans(features, 3, start=centres[order])
    assert torch.equal(classes[order][codes], labels)
    for row in range(3):
        torch.testing.assert_close(found[row], features[codes == row].mean(0))


def test_more_clusters_than_distinct_samples() -> None:
    centres, codes = kmeans(torch.eye(3).repeat(4, 1), 5)
    assert centres.shape == (5, 3)
    assert len(codes.unique()) == 3


def test_the_same_with_any_number_of_threads() -> None:
    x = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(kmeans(x, 7, trials=2)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
