"""A detector's one label-free pass gives what torchvision's own model gives, and images see each other nowhere."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectors import ARCHS, data, detector, every_arch, padded, torchvisions

from dafw.errors import UserError
from dafw.nn.detector import Detector
from dafw.nn.norm import DomainBatchNorm, convert_norm
from dafw.problems import BoxOutputs
from dafw.recording import build, describe


@every_arch
def test_the_detections_are_torchvisions(arch: Any) -> None:
    network = detector(arch=arch, score_threshold=0.0).eval()
    images, _ = data()
    model = torchvisions(network).eval()
    with torch.no_grad():
        expected = model(images)
        found = network.detections(network(*padded(images)))
        network.train()
        again = network.detections(network.eval()(*padded(images)))
    first = int(arch == "fasterrcnn")
    for one, other, third in zip(found, expected, again, strict=True):
        assert len(one["boxes"]) > 0
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["scores"], other["scores"])
        assert torch.equal(one["labels"], other["labels"] - first)
        assert torch.equal(one["boxes"], third["boxes"])
        assert set(one["labels"].tolist()) <= {0, 1, 2}


@every_arch
def test_no_label_is_needed_for_the_pass_and_no_image_for_what_follows(arch: Any) -> None:
    network = detector(arch=arch)
    images, targets = data()
    batch, sizes = padded(images)
    passes: list[int] = []
    network.backbone.register_forward_hook(lambda *_: passes.append(1))
    outputs = network(batch, sizes)
    assert isinstance(outputs, BoxOutputs)
    network.losses(outputs, targets)
    network.row_losses(outputs, targets)
    network.detections(outputs)
    proposals = network.proposals(outputs)
    found = network.regions(outputs, proposals)
    count, (_, width, logits, deltas) = sum(map(len, proposals)), ARCHS[arch]
    assert [tuple(one.shape) for one in (found.features, found.logits, found.deltas, found.probabilities)] == [
        (count, width), (count, logits), (count, deltas), (count, 3),
    ]  # fmt: skip
    assert [len(boxes) for boxes in proposals] == found.image.bincount().tolist()
    assert outputs.vectors().shape == (4, 32)
    assert len(passes) == 1
    assert sum(parameter.numel() for parameter in network.parameters()) <= 300_000


@every_arch
def test_proposals_and_regions_are_those_of_both_modes_and_of_a_slice(arch: Any) -> None:
    network = detector(arch=arch, proposals_in_training=7, proposals_in_test=12).eval()
    images, _ = data()
    outputs = network(*padded(images))
    proposals = network.proposals(outputs)
    assert all(0 < len(boxes) <= 12 for boxes in proposals), "overlapping ones are left out"
    assert not any(boxes.requires_grad for boxes in proposals)
    found = network.regions(outputs, proposals)
    found.features.sum().backward(retain_graph=True)
    assert network.backbone.stages[0][0].weight.grad.abs().sum() > 0  # type: ignore[index,union-attr]
    network.train()
    for one, other in zip(proposals, network.proposals(outputs), strict=True):
        assert torch.equal(one, other)
    part = network.regions(outputs[1:3], proposals[1:3])
    first, count = len(proposals[0]), len(proposals[1]) + len(proposals[2])
    torch.testing.assert_close(part.logits, found[first : first + count].logits)
    torch.testing.assert_close(part.deltas, found[first : first + count].deltas)
    assert part.image.tolist() == [0] * len(proposals[1]) + [1] * len(proposals[2])
    assert all(0 < len(boxes) <= 5 for boxes in network.proposals(outputs, 5))
    none = network.regions(outputs, [boxes[:0] for boxes in proposals])
    assert len(none) == 0
    assert none.logits.shape == (0, ARCHS[arch][2])


def test_regions_of_dense_detectors_are_the_anchor_that_made_the_box() -> None:
    """The scores at a box that lies where an anchor lies are those of this anchor."""
    for arch in ("fcos", "retinanet"):
        network: Any = detector(arch=arch).eval()
        images, _ = data()
        outputs = network(*padded(images))
        classes = torch.cat(network.head.by_anchor(outputs, "classes"), 1)
        shapes, start = network.head.shapes(outputs), 0
        for level, anchors in enumerate(outputs.anchors):
            place = len(anchors) // 2  # somewhere inside
            middle = (anchors[place, :2] + anchors[place, 2:]) / 2 + 0.5
            sides = shapes[level, place % shapes.shape[1]] / 2
            box = torch.cat([middle - sides, middle + sides])[None]
            found = network.regions(outputs[1:2], [box])
            assert torch.equal(found.logits[0], classes[1, start + place])
            start += len(anchors)


@every_arch
def test_an_image_is_detected_alone_as_among_others(arch: Any) -> None:
    network = detector(arch=arch, score_threshold=0.0, detections_per_image=5).double().eval()
    images, _ = data()
    batch, sizes = padded(images)
    with torch.no_grad():
        together = network.detections(network(batch.double(), sizes))
        alone = network.detections(network(batch[1:2].double(), sizes[1:2]))
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(together[1][name], alone[0][name])
    with torch.no_grad():
        boxes = torch.cat([found["boxes"] for found in network.detections(network(batch.double(), sizes))[3:]])
    assert boxes[:, 2].max() <= 70, "no box reaches into the padding"


def test_odd_sizes_are_padded_and_boxes_stay_inside() -> None:
    network = detector(score_threshold=0.0).eval()
    with torch.no_grad():
        outputs = network(torch.rand(2, 3, 50, 67))
        assert outputs.canvas == (64, 80)
        assert outputs.sizes.tolist() == [[50, 67]] * 2
        assert [tuple(level.shape[2:]) for level in outputs.levels.values()] == [(8, 10), (4, 5)]
        assert [len(anchors) for anchors in outputs.anchors] == [240, 60]
        for found in network.detections(outputs):
            assert found["boxes"][:, 2].max() <= 67
            assert found["boxes"][:, 3].max() <= 50


def test_domain_batch_norm_groups_and_checkpoints() -> None:
    network = detector(backbone_lr=0.1)
    layout = convert_norm(network, "domain_specific")
    assert sum(isinstance(layer, DomainBatchNorm) for layer in network.modules()) == 4
    layout.num_source = 2
    network(torch.rand(4, 3, 64, 64))
    backbone, rest = network.parameter_groups(0.5)
    assert (backbone["lr"], rest["lr"]) == (pytest.approx(0.05), 0.5)
    assert len(backbone["params"]) + len(rest["params"]) == len(list(network.parameters()))
    plain = detector()
    again = build(describe(plain))
    again.set_classes(3)
    again.load_state_dict(plain.state_dict())
    twin = copy.deepcopy(plain)
    x = torch.rand(1, 3, 64, 64)
    for other in (again, twin):
        assert torch.equal(other.eval()(x).vectors(), plain.eval()(x).vectors())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Detector("fasterrcn"), 'unknown arch "fasterrcn": did you mean "fasterrcnn"'),  # type: ignore[arg-type]
        (lambda: Detector(backbone="tyny"), 'unknown backbone "tyny": did you mean "tiny"'),
        (lambda: Detector(backbone="resnet18x"), 'unknown backbone "resnet18x": did you mean "resnet18'),
        (lambda: Detector("fcos", anchor_sizes=[[8], [8]]), "fcos has no anchors of several sizes"),
        (lambda: Detector(anchor_sizes=[[8]]), "anchor_sizes has 1 lists for the 2 levels of tiny"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Detector], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()
