"""The losses of a detector's one pass are torchvision's, and those of an image depend on no other image."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectors import ARCHS, Target, data, detector, every_arch, padded, torchvisions
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from dafw.nn.detector import Detector
from dafw.nn.layout import BatchLayout
from dafw.testing.steps import HostCalls, Operations

#: Torchvision's names and ours.
NAMES = {
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal_box",
    "classification": "class",
    "bbox_regression": "box",
    "bbox_ctrness": "centre",
}


def torchvisions_targets(network: Detector, targets: list[Target]) -> list[Target]:
    first = int(network.arch == "fasterrcnn")  # where 0 is the background
    return [{"boxes": target["boxes"], "labels": target["labels"] + first} for target in targets]


def gradients(network: Detector, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@every_arch
@pytest.mark.parametrize("training", [True, False])
def test_the_losses_are_torchvisions_bit_for_bit(arch: Any, training: bool) -> None:
    network = detector(arch=arch, anchors_per_image=32, regions_per_image=16)  # so few that both draws leave some out
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # so that evaluation differs from training
            layer.running_mean, layer.running_var = (
                torch.randn(layer.num_features) * 0.1,
                torch.rand(layer.num_features) + 0.5,
            )
    network.train(training)
    model = torchvisions(network)
    for part in model.modules():  # its losses; no layer changes its mode
        if isinstance(part, GeneralizedRCNN | FCOS | RetinaNet) or part in (network.head, *network.head.children()):  # type: ignore[union-attr]
            part.training = True
    assert network.backbone.training == training
    images, targets = data()
    torch.manual_seed(7)
    expected = model(images, torchvisions_targets(network, targets))
    expected = {name: value for name, value in expected.items() if name != "count"}
    wanted = gradients(network, sum(expected.values()))
    network.train(training)  # torchvision's flags of its own modules too
    batch, sizes = padded(images)
    outputs = network(batch, sizes)
    torch.manual_seed(7)
    found = network.losses(outputs, targets)
    assert tuple(found) == network.loss_names == ARCHS[arch][0]
    assert {name: value.item() for name, value in found.items()} == {NAMES[n]: v.item() for n, v in expected.items()}
    assert all(value > 0 for value in found.values())
    have = gradients(network, sum(found.values()))  # type: ignore[arg-type]
    assert have.keys() == wanted.keys()
    assert [name for name in have if not torch.equal(have[name], wanted[name])] == []
    modes = {module.training for module in network.modules()}
    assert modes == {training}, "the losses change no mode"


@every_arch
def test_the_losses_of_rows_have_the_loss_as_their_mean_and_do_not_change_with_the_slice(arch: Any) -> None:
    network = detector(arch=arch, anchors_per_image=64, regions_per_image=32).eval()
    images, targets = data()
    outputs = replace(network(*padded(images)), seeds=[3, 1, 4, 1])
    losses = network.losses(outputs, targets)
    rows = network.row_losses(outputs, targets)
    for name in network.loss_names:
        assert rows[name].shape == (4,)
        torch.testing.assert_close(rows[name].mean(), losses[name], rtol=1e-5, atol=1e-7)
        if "box" in name or name == "centre":
            assert rows[name][3] == 0, "an image without boxes"
    assert (rows["class"] > 0).all()
    alone = network.losses(outputs[1:2], targets[1:2])
    row = network.row_losses(outputs[1:2], targets[1:2])
    for name in network.loss_names:
        torch.testing.assert_close(row[name][0], alone[name])


def test_draws_are_a_function_of_the_rows_seed_alone() -> None:
    network = detector(anchors_per_image=8, regions_per_image=8).eval()
    images, targets = data()
    outputs = network(*padded(images))
    assert outputs.seeds is None
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(network.losses(outputs, targets)["objectness"].item())
    assert values[0] == values[1] != values[2], "without seeds torch's generator draws"
    seeded = replace(outputs, seeds=[11, 12, 13, 14])
    before = torch.get_rng_state()
    rows = network.row_losses(seeded, targets)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(network.row_losses(seeded, targets)["class"], rows["class"])
    for row in range(4):  # an image draws the same whatever is beside it
        alone = network.losses(seeded[row : row + 1], targets[row : row + 1])
        one = replace(seeded[row : row + 1], seeds=[seeded.seeds[row]])  # type: ignore[index]
        again = network.losses(one, targets[row : row + 1])
        assert all(torch.equal(alone[name], again[name]) for name in network.loss_names)
    assert not torch.equal(network.row_losses(replace(outputs, seeds=[5] * 4), targets)["class"], rows["class"])


def test_a_layout_with_a_clock_gives_each_row_a_seed_of_its_step_and_place() -> None:
    layout = BatchLayout(num_source=2, clock=(7, 3))
    seeds = layout.seeds(5)
    assert seeds is not None
    assert len(set(seeds)) == 5
    assert layout.seeds(2) == seeds[:2], "a pass of the source rows alone"
    with layout.temporarily(num_source=None):
        assert layout.seeds(3) == seeds[2:], "a pass of the target rows alone, as a teacher's"
    with layout.temporarily(clock=(7, 4)):
        assert not set(seeds) & set(layout.seeds(5) or ())
    with layout.temporarily(clock=None):
        assert layout.seeds(5) is None


@pytest.mark.parametrize(
    ("arch", "count"),
    [
        # Of each image two kinds of anchors and two of regions are drawn, small boxes and low scores are left out; in
        # one with boxes each box's best anchor is found. Then the regions of the two levels, and the positive ones.
        ("fasterrcnn", lambda boxed, empty: 7 * boxed + 6 * empty + 3),
        # Masks of the anchors that count; seven of them again for the gradient.
        ("fcos", lambda boxed, empty: 19),
        ("retinanet", lambda boxed, empty: 8 * boxed + 7 * empty),
    ],
)
def test_the_host_reads_of_losses_are_torchvisions_and_counted(arch: Any, count: Callable[[int, int], int]) -> None:
    network = detector(arch=arch)
    images, targets = data()
    outputs = network(*padded(images))
    with Operations() as operations, HostCalls(operations.host_reads, operations.needed_reads):
        loss: Any = sum(network.losses(outputs, targets).values())
        loss.backward()
    assert operations.host_reads == []
    assert len(operations.needed_reads) == count(3, 1), operations.needed_reads


@every_arch
@pytest.mark.parametrize("sizes", [[(64, 64)], [(32, 32), (120, 40)], [(48, 100), (70, 30), (16, 16)]])
def test_batches_without_a_box_train_every_parameter_without_nan(arch: Any, sizes: list[tuple[int, int]]) -> None:
    network = detector(arch=arch)
    images = [torch.rand(3, *size) for size in sizes]
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in sizes]
    outputs = network(*padded(images))
    losses = network.losses(outputs, targets)
    rows = network.row_losses(outputs, targets)
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(value).all() for value in rows.values())
    assert losses["box"] == 0
    found = gradients(network, sum(losses.values()))  # type: ignore[arg-type]
    assert [name for name, _ in network.named_parameters() if name not in found] == []
    assert all(torch.isfinite(value).all() for value in found.values())


@every_arch
def test_it_learns_to_find_rectangles(arch: Any) -> None:
    network = detector(arch=arch, regions_per_image=64, proposals_in_training=100)
    images, targets = data([(64, 64)] * 6)
    targets = [{"boxes": t["boxes"], "labels": torch.zeros_like(t["labels"])} for t in targets]
    optimizer = torch.optim.Adam(network.parameter_groups(3e-3))
    totals = []
    for _ in range(30):
        optimizer.zero_grad()
        losses = network.losses(network(torch.stack(images)), targets)
        loss: Any = sum(losses.values())
        loss.backward()
        optimizer.step()
        totals.append(loss.item() - losses.get("centre", torch.zeros(())).item())  # whose least value is not 0
    assert sum(totals[-5:]) < 0.6 * sum(totals[:5])


@every_arch
def test_images_in_uint8_and_bf16(arch: Any) -> None:
    network = detector(arch=arch).eval()
    images, targets = data()
    batch, sizes = padded(images)
    exact = network.losses(network((batch * 255).byte(), sizes), targets)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network((batch * 255).byte(), sizes)
        assert next(iter(outputs.maps.values()))[0].dtype == torch.bfloat16
        assert outputs.anchors[0].dtype == torch.float32, "pixels above 256 are no bfloat16"
        found = network.losses(outputs, targets)
        network.detections(outputs)
    sum(found.values()).backward()  # type: ignore[union-attr]
    for name in network.loss_names:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], exact[name], rtol=0.2, atol=0.05)


def test_what_the_detector_is_unsure_of_counts_less_if_asked() -> None:
    network = detector(anchors_per_image=64, regions_per_image=32).eval()
    images, targets = data()
    outputs = replace(network(*padded(images)), seeds=[3, 1, 4, 1])
    terms = network.box_head._terms(outputs, targets)  # type: ignore[operator]
    logits, truth, _ = terms["class"].loss.args
    scores, right = terms["objectness"].loss.args
    of_classes = F.cross_entropy(logits, truth, reduction="none") * logits.detach().softmax(1).amax(1)
    of_objects = F.binary_cross_entropy_with_logits(scores, right, reduction="none") * scores.sigmoid()
    rows, plain = network.row_losses(outputs, targets, certain=True), network.row_losses(outputs, targets)
    torch.testing.assert_close(rows["class"].mean(), of_classes.mean())
    torch.testing.assert_close(rows["objectness"].mean(), of_objects.mean())
    for name in ("box", "proposal_box"):
        assert torch.equal(rows[name], plain[name])
    for found, wanted in ((rows["class"].mean(), of_classes.mean()), (rows["objectness"].mean(), of_objects.mean())):
        own, theirs = (torch.autograd.grad(one, outputs.levels["0"], retain_graph=True)[0] for one in (found, wanted))
        torch.testing.assert_close(own, theirs)
    other = detector(arch="fcos").eval()
    outputs = other(*padded(images))
    with pytest.raises(ValueError, match="fcos has no proposals of its own"):
        other.row_losses(outputs, targets, certain=True)


@every_arch
def test_losses_of_parts_are_those_that_each_part_has_alone(arch: Any) -> None:
    network = detector(arch=arch, anchors_per_image=64, regions_per_image=32).eval()
    images, targets = data()
    outputs = replace(network(*padded(images)), seeds=[3, 1, 4, 1])
    whole, parts = network.part_losses(outputs, targets, 2)
    wanted = network.losses(outputs, targets)
    for name in network.loss_names:
        torch.testing.assert_close(whole[name], wanted[name])
        assert parts[name].shape == (2,)
        for part in (0, 1):
            rows = slice(2 * part, 2 * part + 2)
            torch.testing.assert_close(parts[name][part], network.losses(outputs[rows], targets[rows])[name])
    if arch == "fasterrcnn":
        assert all(torch.equal(whole[name], wanted[name]) for name in whole)
