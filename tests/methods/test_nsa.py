"""NSA: an image that is not disturbed has no loss, maps and boxes follow the pixels, each part works by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.geometry import invert, move_boxes
from dafw.errors import UserError
from dafw.losses.stability import (
    class_contrast,
    contrasted_positions,
    map_distance,
    row_distance,
    standardised,
    texture,
    texture_classes,
)
from dafw.methods import NSA, SourceOnly
from dafw.methods.detection import nsa
from dafw.nn.detector import Detector
from dafw.nn.disturbance import (
    NUMBERS,
    Disturbance,
    Heavy,
    Light,
    disturb,
    moved_labels,
    position_labels,
    region_labels,
    visible_share,
)
from dafw.testing import case
from dafw.testing.cases import BATCH, TINY, Case

STILL = {"colours": 0.0, "hue": 0.0, "blur": 0.0, "zoom": 0.0, "shift": 0.0}
NOTHING = {"class_path": "dafw.nn.disturbance.Light", "init_args": {**STILL, "flip": 0.0}}
MIRRORED = {"class_path": "dafw.nn.disturbance.Heavy", "init_args": {**STILL, "flip": 1.0}}


def make_case(**arguments: Any) -> Case:
    return case(NSA, **{**TINY["NSA"], "position_weight": 0.0, **arguments})


def batch_of(item: Case) -> Batch:
    data = item.make_data()
    data.setup("fit")
    batch: Batch = next(iter(data.train_dataloader()))
    return batch


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method without a trainer logs nothing."""
    monkeypatch.setattr(NSA, "logs_this_step", False)


@pytest.mark.usefixtures("quiet")
def test_an_undisturbed_image_has_no_light_loss() -> None:
    method: Any = make_case(light=NOTHING).make().double().eval()
    batch = batch_of(make_case())
    terms = method.losses(batch)
    assert {name for name in terms if name.startswith("light")} == {"light_pixel", "light_region", "light_output"}
    for name in ("light_pixel", "light_region", "light_output"):
        assert abs(float(terms[name])) < 1e-12, name
    assert terms["instance"] > 0
    disturbed: Any = make_case().make().double().eval()
    assert disturbed.losses(batch)["light_region"] > 1e-6


@pytest.mark.usefixtures("quiet")
def test_gradients_reach_the_student_alone() -> None:
    method: Any = make_case().make()
    terms = method.losses(batch_of(make_case()))
    for name in ("heavy", "light_pixel", "light_region", "light_output", "instance"):
        found = torch.autograd.grad(
            terms[name], list(method.network.parameters()), retain_graph=True, allow_unused=True
        )
        assert any(g is not None and float(g.abs().sum()) > 0 for g in found), name
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("arch", ["fcos", "retinanet"])
def test_every_detector_is_compared(arch: str) -> None:
    network = Detector(arch, proposals_in_test=20, score_threshold=0.0)
    method: Any = case(NSA, network=network, **TINY["NSA"]).make()
    terms = method.losses(batch_of(make_case()))
    for name in ("heavy", "light_pixel", "light_region", "light_output", "instance"):
        assert bool(terms[name].isfinite()), name
    assert terms["light_output"] > 0


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"light_weight": 0.0, "instance_weight": 0.0}, {"heavy"}),
        ({"heavy_weight": 0.0, "instance_weight": 0.0}, {"light_pixel", "light_region", "light_output"}),
        ({"heavy_weight": 0.0, "light_weight": 0.0}, {"instance"}),
        ({"heavy_weight": 0.0, "light_weight": 0.0, "instance_weight": 0.0, "position_weight": 1.0}, {"position"}),
        ({"burn_in": 0.5}, set()),
    ],
)
def test_each_part_by_itself(weights: dict[str, Any], expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NSA, "steps_planned", 2)
    method: Any = make_case(**weights).make()
    terms = method.losses(batch_of(make_case()))
    assert set(terms) - set(method.network.loss_names) == expected


@pytest.mark.usefixtures("quiet")
def test_the_losses_are_those_of_the_disturbed_boxes() -> None:
    """Everything is mirrored: the supervised loss is that of mirrored images and boxes."""
    method: Any = make_case(heavy=MIRRORED, least_side=0.0).make().eval()
    batch = batch_of(make_case())
    torch.manual_seed(2)
    terms = method.losses(batch)
    labels = []
    for one in batch.y:
        left, top, right, bottom = one["boxes"].unbind(1)
        labels.append({**one, "boxes": torch.stack([32 - right, top, 32 - left, bottom], 1)})
    torch.manual_seed(2)
    wanted = method.network.losses(method.network(batch.x[:BATCH].flip(3)), labels)
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.usefixtures("quiet")
def test_no_pseudo_box_gives_zero() -> None:
    method: Any = make_case(threshold=1.0).make()
    batch = batch_of(make_case())
    terms = method.losses(batch)
    assert terms["heavy"] == 0
    assert all(bool(value.isfinite()) for value in terms.values())
    bare = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * BATCH
    terms = method.losses(Batch(**{**vars(batch), "y": bare}))
    assert [float(terms[name]) for name in ("heavy", "light_pixel", "light_output", "instance")] == [0, 0, 0, 0]
    assert all(bool(value.isfinite()) for value in terms.values())


def test_the_teacher_is_served_and_follows_the_student(tmp_path: Path) -> None:
    method, _ = make_case().train(tmp_path)
    assert method.eval_network is method.teacher.module  # type: ignore[union-attr]
    assert method.evaluator.problem.network is method.teacher.module  # type: ignore[union-attr, attr-defined]
    averaged: Any = make_case(ema_decay=0.9).make()
    assert averaged.eval_network is averaged.weight_average.module


@pytest.mark.parametrize("how", [Heavy(), Light(), Disturbance(flip=0.5, shift=1.0, zoom=0.0, colours=0.0)])
@pytest.mark.parametrize("padded", [False, True])
def test_boxes_follow_the_pixels(how: Disturbance, padded: bool) -> None:
    """A bright square on grey is where its moved box is."""
    count, size = 12, 48
    x = torch.full((count, 3, size, size), 0.5, dtype=torch.float64)
    x[:, :, 14:24, 10:24] = 1.0
    sizes = torch.tensor([[40, 44]] * count) if padded else None
    drawn = np.random.default_rng(1).random((count, NUMBERS))
    how = Disturbance(**{**vars(how), "blur": 0.0, "colours": 0.0, "hue": 0.0})
    moved, maps = disturb(x, drawn, how, sizes)
    limit = torch.tensor([40, 44] if padded else [size, size])
    for image, affine in zip(moved, maps, strict=True):
        box = move_boxes(torch.tensor([[10.0, 14.0, 24.0, 24.0]]), affine, limit)[0]
        assert len({round(float(value), 9) for value in affine.abs().diagonal()}) == 1, "one scale for both directions"
        bright = (image[0] > 0.75).nonzero().to(box.dtype)
        if len(bright):
            edges = torch.cat([bright.amin(0).flip(0), bright.amax(0).flip(0) + 1])
            assert (edges - box).abs().max() <= 1
        else:
            assert float((box[2:] - box[:2]).prod()) < 4
    there = move_boxes(torch.tensor([[3.0, 4, 9, 8]]), maps[0])
    torch.testing.assert_close(move_boxes(there, invert(maps)[0]), torch.tensor([[3.0, 4, 9, 8]]).double())


def test_disturbances_stay_within_their_ranges() -> None:
    drawn = np.random.default_rng(0).random((500, NUMBERS))
    x = torch.zeros(500, 3, 8, 8, dtype=torch.float64)
    scales = disturb(x, drawn, Heavy()).maps[:, 1, 1]
    assert 1 / 3.5 <= scales.min() < 0.4
    assert 2.5 < scales.max() <= 3.5
    near = ((scales > 1) & (scales <= 2)).double().mean() + ((scales < 1) & (scales >= 0.5)).double().mean()
    assert near == pytest.approx(0.7, abs=0.07)
    assert (disturb(x, drawn, Heavy()).maps[:, 0, 0] < 0).double().mean() == pytest.approx(0.15, abs=0.05)
    maps = disturb(x, drawn, Light()).maps
    zoomed, shifted = maps[:, 1, 1] != 1, (maps[:, 1, 1] == 1) & (maps[:, 1, 2] != 0)
    assert zoomed.double().mean() == pytest.approx(0.15, abs=0.05)
    assert shifted.double().mean() == pytest.approx(0.15, abs=0.05)
    assert maps[shifted][:, 1, 2].abs().max() <= 8
    assert torch.equal(maps[shifted][:, 0, 2], maps[shifted][:, 1, 2]), "along the diagonal"


def test_boxes_that_are_mostly_outside_too_small_or_too_large_are_left_out() -> None:
    label = {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [1, 1, 4, 9]]), "labels": torch.arange(3)}
    maps = torch.tensor([[[1.0, 0, -5], [0, 1, 0]], [[2.0, 0, 0], [0, 2, 0]], [[1.0, 0, 0], [0, 1, 0]]])
    limits = torch.tensor([[32, 32]] * 3)
    found = moved_labels([label] * 3, maps, limits, 0.6, 5.0, 0.5)
    assert [one["labels"].tolist() for one in found] == [[1], [2], [0, 1]]
    assert found[1]["boxes"].tolist() == [[2, 2, 8, 18]]
    shares = visible_share(torch.tensor([[-5.0, 0, 5, 10], [40, 40, 50, 50]]), torch.tensor([32, 32]))
    assert shares.tolist() == [0.5, 0]


def test_labels_of_regions_and_positions_within_boxes() -> None:
    truth = [
        {"boxes": torch.tensor([[0.0, 0, 8, 8], [16, 16, 32, 32]]), "labels": torch.tensor([2, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    regions = [torch.tensor([[0.0, 0, 8, 9], [16, 16, 30, 30], [0, 0, 30, 30]]), torch.tensor([[0.0, 0, 8, 8]])]
    assert region_labels(regions, truth).tolist() == [3, 1, 0, 0]
    classes = position_labels(truth, (4, 4), (8.0, 8.0), torch.zeros(()))
    wanted = torch.zeros(2, 4, 4, dtype=torch.int64)
    wanted[0, 0, 0] = 3
    wanted[0, 2:, 2:] = 1
    assert torch.equal(classes, wanted)
    above = [{"boxes": torch.tensor([[0.0, 0, 16, 16], [0, 0, 32, 32]]), "labels": torch.tensor([4, 1])}]
    found = position_labels(above, (4, 4), (8.0, 8.0), torch.zeros(()))[0]
    assert found[:2, :2].eq(5).all(), "the first box that a position is in"
    assert found.eq(2).sum() == 12


def clear_position(labels: Tensor, strong: Tensor, inside: Tensor, row: int, column: int) -> int:
    """The class of one position, by loops."""

    def around(side: int) -> list[tuple[int, int]]:
        reach, (height, width) = side // 2, labels.shape
        places = [
            (row + down, column + right) for down in range(-reach, reach + 1) for right in range(-reach, reach + 1)
        ]
        return [(down, right) for down, right in places if 0 <= down < height and 0 <= right < width]

    def count(side: int, number: int) -> int:
        return sum(int(labels[place]) == number and bool(inside[place]) for place in around(side))

    often = sorted(range(1, 4), key=lambda number: -count(5, number))[0]
    label = often if count(5, often) >= 2 or count(5, often) > count(5, 0) else 0
    clear = count(7, label) == count(5, label) and count(3, label) > 5
    clear = clear or (label == 0 and any(bool(strong[place]) for place in around(3)))
    return label if clear and bool(inside[row, column]) else -1


def test_positions_in_the_middle_of_small_objects_and_of_strong_texture_are_contrasted() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.zeros(3, 23, 30, dtype=torch.int64)
    labels[0, 5:10, 5:10], labels[0, 12:17, 12:17], labels[0, 0:3, 20:23] = 1, 2, 3  # small ones on the grid
    labels[1, 2:20, 2:20] = 1  # which is large
    labels[2] = torch.randint(0, 4, (23, 30), generator=generator)
    strong = torch.rand(3, 23, 30, generator=generator) < 0.03
    inside = torch.ones(3, 23, 30, dtype=torch.bool)
    inside[:, :, 28:] = False
    found = contrasted_positions(labels, strong, 3, inside)
    assert found.shape == (3, 4, 5)
    wanted = [
        [[clear_position(labels[n], strong[n], inside[n], 7 * i, 7 * j) for j in range(5)] for i in range(4)]
        for n in range(3)
    ]
    assert found.tolist() == wanted
    assert {int(found[0, 1, 1]), int(found[0, 2, 2])} == {1, 2}
    assert (found[0] == 0).any()
    assert (found[1] == 1).sum() == 0, "a large object has no clear middle"


@pytest.mark.usefixtures("quiet")
def test_the_contrast_of_positions_is_that_of_the_maps_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    item = make_case(light=NOTHING, position_weight=0.5)
    method: Any = item.make().double().eval()
    with torch.no_grad():  # a student that is not the teacher
        for value in method.network.parameters():
            value.add_(0.01 * torch.randn_like(value))
    labels = torch.tensor([1, 0] * BATCH)  # the maps have one position of the grid
    monkeypatch.setattr(nsa, "contrasted_positions", lambda *_: labels.view(-1, 1, 1))
    batch = batch_of(item)
    found = method.losses(batch)["position"]
    student, teacher = method.network(batch.x).levels, method.teacher.module(batch.x).levels
    wanted = []
    for name in student:
        inside = torch.ones(2 * BATCH, *student[name].shape[2:], dtype=torch.bool)
        ours, theirs = (standardised(one[name], inside)[:, :, 0, 0] for one in (student, teacher))
        wanted.append(class_contrast(ours, theirs, labels, method.num_classes))
    torch.testing.assert_close(found, 0.5 * torch.stack(wanted).mean())
    gradients = torch.autograd.grad(found, list(method.network.parameters()), allow_unused=True)
    assert any(one is not None and float(one.abs().sum()) > 0 for one in gradients)


def test_distances_by_hand() -> None:
    student, teacher = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    objects = torch.tensor([True, False, True, False, False])
    ground = torch.tensor([False, True, False, True, False])
    squares = (student - teacher).square().mean(1)
    torch.testing.assert_close(
        row_distance(student, teacher, objects, ground, 0.1), squares[objects].mean() + 0.1 * squares[ground].mean()
    )
    assert row_distance(student, teacher, objects & ground, objects & ground) == 0
    maps, other = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 4, 5).double()
    classes, counts = torch.randint(0, 3, (2, 4, 5)), torch.rand(2, 4, 5) > 0.3
    squares = (maps - other).square().mean(1)
    wanted = sum(w * squares[counts & (classes == c)].mean() for c, w in ((1, 0.1), (2, 1.0)))
    torch.testing.assert_close(map_distance(maps, other, counts, classes, (0.0, 0.1, 1.0)), wanted)
    inside = torch.ones(2, 4, 5, dtype=torch.bool)
    inside[:, :, 3:] = False
    part = standardised(maps, inside)[:, :, :, :3]
    torch.testing.assert_close(part.mean((2, 3)), torch.zeros(2, 3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(part.square().mean((2, 3)), torch.ones(2, 3).double(), rtol=0, atol=1e-3)
    assert texture_classes(texture(torch.ones(1, 2, 9, 9))).max() <= 2, "a constant map divides by nothing"


def test_the_contrast_falls_when_a_row_comes_closer_to_its_class() -> None:
    torch.manual_seed(0)
    teacher, labels = torch.randn(9, 4), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    near = class_contrast(teacher.clone(), teacher, labels, 2)
    far = class_contrast(-teacher, teacher, labels, 2)
    assert near < far
    assert class_contrast(teacher, teacher, torch.zeros(9, dtype=torch.int64), 2) == 0
    one = class_contrast(teacher[3:6], teacher[3:6], labels[3:6], 2)
    assert one == 0, "no other class and no background"
    counts = torch.ones(9, dtype=torch.bool)
    counts[3:5] = False
    idle = torch.cat([labels, torch.full((4,), -1)])
    more = torch.cat([teacher, torch.randn(4, 4)])
    torch.testing.assert_close(class_contrast(-more, more, idle, 2), far)
    kept: Tensor = class_contrast(-teacher, teacher, labels, 2, counts=counts)
    assert kept.isfinite()
    assert kept != far


class WithoutRegions(Detector):
    """A detector that says nothing of boxes that are not its own."""

    @property
    def regions(self) -> Any:  # type: ignore[override]
        raise AttributeError("no regions")


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="NSA compares regions, and WithoutRegions has no regions"):
        NSA(WithoutRegions(), num_classes=3)
    with pytest.raises(
        UserError, match=r"model\.strides is \[4\], and the detector's feature maps have the strides 8, 16"
    ):
        make_case(strides=[4]).make()
    with pytest.raises(UserError, match=r"model\.texture_weights must be three numbers"):
        make_case(texture_weights=[1.0, 2.0]).make()
    with pytest.raises(UserError, match=r"model\.heavy\.zoom must be from 0 to 1, not 2"):
        Heavy(zoom=2.0)
    assert SourceOnly(WithoutRegions(), num_classes=3, problem=make_case().make().problem)
