"""Boxes of a domain in a few arrays."""

import numpy as np

from dafw.data.boxes import BoxLabels


def three() -> BoxLabels:
    boxes = np.arange(16).reshape(4, 4)
    return BoxLabels.of_counts(boxes, np.asarray([0, 1, 2, 3]), [1, 0, 3], np.asarray([True, False, True, False]))


def test_items_are_the_boxes_of_a_sample() -> None:
    found = three()
    assert len(found) == 3
    assert [one["labels"].tolist() for one in found] == [[0], [], [1, 2, 3]]
    assert [one["crowd"].tolist() for one in found] == [[True], [], [False, True, False]]
    assert found[1]["boxes"].shape == (0, 4)
    assert found[-1]["boxes"][0].tolist() == [4, 5, 6, 7]
    assert BoxLabels.of_counts(np.zeros((0,)), np.zeros((0,)), [0, 0])[1]["boxes"].shape == (0, 4)


def test_a_subset_and_what_trains() -> None:
    some = three().subset(np.asarray([2, 1, 2, 0]))
    assert [one["labels"].tolist() for one in some] == [[1, 2, 3], [], [1, 2, 3], [0]]
    assert [one["crowd"].tolist() for one in some][3] == [True]
    trained = three().without_crowd()
    assert [one["labels"].tolist() for one in trained] == [[], [], [1, 3]]
    assert [set(one) for one in trained] == [{"boxes", "labels"}] * 3
    assert trained.without_crowd() is trained
    assert three().counts.tolist() == [1, 0, 3]
