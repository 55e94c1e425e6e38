"""A detector's one label-free pass gives what torchvision's own model gives, and images see each other nowhere."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dafw.errors import UserError
from dafw.nn.detector import Detector
from dafw.nn.norm import DomainBatchNorm, convert_norm
from dafw.problems import BoxOutputs
from dafw.recording import build, describe

#: Torchvision's names and ours.
NAMES = {
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal_box",
}
LOSSES = tuple(NAMES.values())
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


def torchvisions(network: Detector) -> GeneralizedRCNN:
    """Torchvision's model on the very same parts; it scales no image whose shorter side has 64 pixels.

    Its transform is in evaluation mode, as it would draw a scale for each image otherwise.
    """
    transform = GeneralizedRCNNTransform(64, 1000, [0.0] * 3, [1.0] * 3, size_divisible=16).eval()
    return GeneralizedRCNN(network.backbone, network.head.rpn, network.head.roi_heads, transform)  # type: ignore[union-attr]


def from_one(targets: list[Target]) -> list[Target]:
    return [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]


def gradients(network: Detector, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [True, False])
def test_the_four_losses_are_torchvisions_bit_for_bit(training: bool) -> None:
    network = detector(anchors_per_image=32, regions_per_image=16)  # so few that both draws leave some out
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # so that evaluation differs from training
            layer.running_mean, layer.running_var = (
                torch.randn(layer.num_features) * 0.1,
                torch.rand(layer.num_features) + 0.5,
            )
    network.train(training)
    model = torchvisions(network)
    model.training = model.rpn.training = model.roi_heads.training = True  # its losses; no layer changes its mode
    assert network.backbone.training == training
    images, targets = data()
    torch.manual_seed(7)
    expected = model(images, from_one(targets))
    wanted = gradients(network, sum(expected.values()))
    network.train(training)  # torchvision's flags of its own modules too
    batch, sizes = padded(images)
    outputs = network(batch, sizes)
    torch.manual_seed(7)
    found = network.losses(outputs, targets)
    assert tuple(found) == network.loss_names == LOSSES
    assert {name: value.item() for name, value in found.items()} == {
        NAMES[name]: v.item() for name, v in expected.items()
    }
    assert all(value > 0 for value in found.values())
    have = gradients(network, sum(found.values()))  # type: ignore[arg-type]
    assert have.keys() == wanted.keys()
    assert [name for name in have if not torch.equal(have[name], wanted[name])] == []
    modes = {module.training for module in network.modules()}
    assert modes == {training}, "the losses change no mode"


def test_the_detections_are_torchvisions() -> None:
    network = detector(score_threshold=0.0).eval()
    images, _ = data()
    model = torchvisions(network).eval()
    with torch.no_grad():
        expected = model(images)
        found = network.detections(network(*padded(images)))
    for one, other in zip(found, expected, strict=True):
        assert len(one["boxes"]) > 0
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["scores"], other["scores"])
        assert torch.equal(one["labels"], other["labels"] - 1)
        assert set(one["labels"].tolist()) <= {0, 1, 2}


def test_no_label_is_needed_for_the_pass_and_no_image_for_what_follows() -> None:
    network = detector()
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
    count = sum(map(len, proposals))
    assert found.features.shape == (count, 96)
    assert found.logits.shape == (count, 4)
    assert found.deltas.shape == (count, 16)
    assert found.probabilities.shape == (count, 3)
    assert [len(boxes) for boxes in proposals] == found.image.bincount().tolist()
    assert outputs.vectors().shape == (4, 32)
    assert len(passes) == 1
    assert sum(parameter.numel() for parameter in network.parameters()) <= 300_000


def test_the_losses_of_rows_have_the_loss_as_their_mean_and_do_not_change_with_the_slice() -> None:
    network = detector(anchors_per_image=64, regions_per_image=32).eval()
    images, targets = data()
    outputs = network(*padded(images))
    torch.manual_seed(3)
    losses = network.losses(outputs, targets)
    torch.manual_seed(3)
    rows = network.row_losses(outputs, targets)
    for name in LOSSES:
        assert rows[name].shape == (4,)
        torch.testing.assert_close(rows[name].mean(), losses[name], rtol=1e-5, atol=1e-7)
    assert rows["box"][3] == rows["proposal_box"][3] == 0, "an image without boxes"
    assert (rows["class"] > 0).all()
    torch.manual_seed(4)
    alone = network.losses(outputs[1:2], targets[1:2])
    torch.manual_seed(4)
    row = network.row_losses(outputs[1:2], targets[1:2])
    for name in LOSSES:
        torch.testing.assert_close(row[name][0], alone[name])


def test_random_draws_follow_torchs_generator() -> None:
    network = detector(anchors_per_image=8, regions_per_image=8)
    images, targets = data()
    outputs = network(*padded(images))
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(network.losses(outputs, targets)["objectness"].item())
    assert values[0] == values[1] != values[2]


def test_an_image_is_detected_alone_as_among_others() -> None:
    network = detector(score_threshold=0.0, detections_per_image=5).double().eval()
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


def test_images_in_uint8_and_bf16() -> None:
    network = detector().eval()
    images, targets = data()
    batch, sizes = padded(images)
    exact = network.losses(network((batch * 255).byte(), sizes), targets)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network((batch * 255).byte(), sizes)
        assert outputs.maps["objectness"][0].dtype == torch.bfloat16
        assert outputs.anchors[0].dtype == torch.float32, "pixels above 256 are no bfloat16"
        found = network.losses(outputs, targets)
        network.detections(outputs)
    sum(found.values()).backward()  # type: ignore[union-attr]
    for name in LOSSES:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], exact[name], rtol=0.2, atol=0.05)


def test_it_learns_to_find_rectangles() -> None:
    network = detector(regions_per_image=64, proposals_in_training=100)
    images, targets = data([(64, 64)] * 6)
    targets = [{"boxes": t["boxes"], "labels": torch.zeros_like(t["labels"])} for t in targets]
    optimizer = torch.optim.Adam(network.parameter_groups(3e-3))
    totals = []
    for _ in range(30):
        optimizer.zero_grad()
        loss: Any = sum(network.losses(network(torch.stack(images)), targets).values())
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
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
        (lambda: Detector(backbone="tyny"), 'unknown backbone "tyny": did you mean "tiny"'),  # type: ignore[arg-type]
        (lambda: Detector(anchor_sizes=[[8]]), "anchor_sizes has 1 lists for the 2 levels of tiny"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Detector], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()
