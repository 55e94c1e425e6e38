"""Small detectors, images with rectangles for them, and torchvision's models on the same parts."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dafw.nn.detector import Detector

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
