"""A detector's one label-free pass gives what torchvision's own model gives, and images see each other nowhere."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dafw.errors import UserError
from dafw.nn.detector import Detector
from dafw.nn.layout import BatchLayout
from dafw.nn.norm import DomainBatchNorm, convert_norm
from dafw.problems import BoxOutputs
from dafw.recording import build, describe
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
#: The terms, the widths of the regions' features, logits and moves for three classes.
ARCHS = {
    "fasterrcnn": (("class", "box", "objectness", "proposal_box"), 96, 4, 16),
    "fcos": (("class", "box", "centre"), 32, 3, 4),
    "retinanet": (("class", "box"), 32, 3, 4),
}
every_arch = pytest.mark.parametrize("arch", ARCHS)
SIZES = [(64, 80), (96, 64), (64, 64), (64, 70)]
Target = dict[str, Tensor]


def detector(classes: int = 3, **options: Any) -> Detector:
    torch.manual_seed(0)
    network = Detector(mean=[0.0], std=[1.0], **options)
    network.set_classes(classes)
    return network


def data(sizes: list[tuple[int, int]] = SIZES, seed: int = 1) -> tuple[list[Tensor], list[Target]]:
    """Images in [0, 1] with bright rectangles, and their boxes; the last image has none."""
    torch.manual_seed(seed)
    images, targets = [], []
    for number, (height, width) in enumerate(sizes):
        image, boxes = torch.rand(3, height, width) * 0.3, []
        for _ in range(3 if number < len(sizes) - 1 else 0):
            left, top = int(torch.randint(0, width - 30, ())), int(torch.randint(0, height - 30, ()))
            right, bottom = left + int(torch.randint(12, 30, ())), top + int(torch.randint(12, 30, ()))
            image[:, top:bottom, left:right] += 0.6
            boxes.append([left, top, right, bottom])
        images.append(image)
        labels = torch.randint(0, 3, (len(boxes),))
        targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": labels})
    return images, targets


def padded(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One batch with something else than zeros in the padding, and the sizes."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    batch = torch.full((len(images), 3, int(sizes[:, 0].max()), int(sizes[:, 1].max())), 0.7)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def torchvisions(network: Detector) -> Any:
    """Torchvision's model on the very same parts; it scales no image whose shorter side has 64 pixels.

    Its transform is in evaluation mode, as it would draw a scale for each image otherwise.
    """
    transform = GeneralizedRCNNTransform(64, 1000, [0.0] * 3, [1.0] * 3, size_divisible=16).eval()
    head: Any = network.head
    if network.arch == "fasterrcnn":
        return GeneralizedRCNN(network.backbone, head.rpn, head.roi_heads, transform)
    own, owner = head.model, {"fcos": FCOS, "retinanet": RetinaNet}[network.arch]
    options = {"score_thresh": own.score_thresh, "nms_thresh": own.nms_thresh, "topk_candidates": own.topk_candidates}
    options["detections_per_img"] = own.detections_per_img
    model = owner(network.backbone, 3, anchor_generator=own.anchor_generator, head=own.head, **options)
    model.transform = transform
    return model


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
