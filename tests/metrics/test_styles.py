"""Purity and adjusted mutual information of groups and styles, against what can be counted by hand."""

from itertools import permutations

import numpy as np
import pytest

from dafw.metrics import StyleSplit, mean_split, style_split


def split(groups: list[int], styles: list[int]) -> StyleSplit:
    return style_split(np.array(groups), np.array(styles))


def information(one: list[int], other: list[int]) -> float:
    """Mutual information in nats."""
    n, total = len(one), 0.0
    for a in set(one):
        for b in set(other):
            both = sum(x == a and y == b for x, y in zip(one, other, strict=True))
            if both:
                total += both / n * np.log(n * both / (one.count(a) * other.count(b)))
    return total


def test_purity() -> None:
    found = split([7, 7, 7, -1, -1, 3], [0, 0, 1, 1, 1, 0])
    assert (found.samples, found.groups) == (6, 3)
    assert found.purity == pytest.approx(5 / 6)
    assert found.baseline == pytest.approx(3 / 6)


def test_adjusted_mutual_information_is_corrected_by_the_mean_of_all_permutations() -> None:
    groups, styles = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0]
    chance = float(np.mean([information(list(order), styles) for order in permutations(groups)]))
    entropies = (information(groups, groups) + information(styles, styles)) / 2
    expected = (information(groups, styles) - chance) / (entropies - chance)
    assert split(groups, styles).ami == pytest.approx(expected, abs=1e-9)


def test_the_same_split_under_other_numbers() -> None:
    assert split([5, 5, 2, 2], [0, 0, 1, 1])[2:] == pytest.approx((1.0, 0.5, 1.0))


def test_many_random_groups_are_pure_but_tell_nothing() -> None:
    rng = np.random.default_rng(0)
    found = style_split(rng.integers(100, size=400), rng.integers(2, size=400))
    assert found.purity > 0.6
    assert abs(found.ami) < 0.05


def test_one_group_is_its_own_baseline() -> None:
    assert split([4, 4, 4], [0, 1, 1])[2:] == pytest.approx((2 / 3, 2 / 3, 0.0), abs=1e-9)


def test_the_mean_is_weighted_by_samples() -> None:
    whole = mean_split([StyleSplit(10, 2, 1.0, 0.5, 1.0), StyleSplit(30, 3, 0.6, 0.5, 0.2)])
    assert whole == pytest.approx(StyleSplit(40, 5, 0.7, 0.5, 0.4))


def test_refusals() -> None:
    for groups, styles in (([], []), ([0, 1], [0])):
        with pytest.raises(ValueError, match="style_split"):
            split(groups, styles)
