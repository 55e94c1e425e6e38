"""Values of the published code of DA Faster R-CNN and NSA, see tests/golden/da_faster_rcnn and tests/golden/nsa."""

import numpy as np
import pytest
import torch
from golden_vectors import golden
from torch import Tensor, nn

from dafw.losses.box_critics import consistency, critic_loss
from dafw.losses.stability import (
    class_contrast,
    contrast,
    mirrored_deltas,
    row_distance,
    texture,
    texture_classes,
)
from dafw.nn.box_critics import ImageCritic
from dafw.nn.reversal import reverse_gradient

TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}


def close(found: Tensor, expected: object) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, **TOLERANCE)  # type: ignore[arg-type]


def test_da_faster_rcnn_and_its_gradients() -> None:
    """The authors take two images, first the source's; their first regions are of the source too."""
    arrays = {
        name: torch.from_numpy(np.asarray(value))
        for name, value in golden("da_faster_rcnn/heads_and_losses.npz").items()
    }
    features, regions = arrays["img_feat"].requires_grad_(), arrays["roi_feat"].requires_grad_()
    is_source, scale = arrays["roi_is_source"].bool(), float(arrays["grl"])
    critic = ImageCritic(features.shape[1], arrays["img_0_weight"].shape[0], 1)
    critic.load_state_dict(
        {f"critics.0.{layer}.{kind}": arrays[f"img_{layer}_{kind}"] for layer in (0, 2) for kind in ("weight", "bias")}
    )
    shape = arrays["ins_0_weight"].shape
    own = nn.Sequential(nn.Linear(shape[1], shape[0]), nn.ReLU(), nn.Linear(shape[0], 1))
    own.load_state_dict(
        {f"{layer}.{kind}": arrays[f"ins_{layer}_{kind}"] for layer in (0, 2) for kind in ("weight", "bias")}
    )
    of_positions = critic([reverse_gradient(features, scale)])
    of_regions = own(reverse_gradient(regions, scale)).squeeze(1)
    close(of_positions[0].view(arrays["img_logit"].shape), arrays["img_logit"])
    close(of_regions[:, None], arrays["ins_logit"])
    image = critic_loss(of_positions[0], torch.tensor([[True], [False]]))
    instance = critic_loss(of_regions, is_source)
    again = own(reverse_gradient(regions, -scale)).squeeze(1)
    same = consistency(critic([reverse_gradient(features, -scale)]), again, (~is_source).long(), [None])
    close(image, arrays["loss_img"])
    close(instance, arrays["loss_ins"])
    close(same, arrays["loss_cst"])
    (image + instance + float(arrays["cst_weight"]) * same).backward()
    close(features.grad, arrays["grad_img_feat"])  # type: ignore[arg-type]
    close(regions.grad, arrays["grad_roi_feat"])  # type: ignore[arg-type]
    close(critic.critics[0][2].weight.grad, arrays["grad_img_head_last"])  # type: ignore[index]
    close(own[2].weight.grad, arrays["grad_ins_head_last"])  # type: ignore[arg-type]


def test_contrast_of_a_row() -> None:
    arrays = {name: torch.from_numpy(value) for name, value in golden("nsa/contrast_loss.npz").items()}
    close(contrast(arrays["pos"], arrays["neg"]), arrays["loss"])
    close(contrast(arrays["pos"], arrays["neg"], arrays["mask"] > 0), arrays["loss_masked"])


@pytest.mark.parametrize("name", ["pixel_contrast", "instance_contrast"])
def test_contrast_of_classes(name: str) -> None:
    """The authors' two functions have the same value for the same rows."""
    arrays = {name: torch.from_numpy(np.asarray(value)) for name, value in golden(f"nsa/{name}.npz").items()}
    student = arrays["st"].requires_grad_()
    loss = class_contrast(student, arrays["tc"], arrays["label"], int(arrays["label"].max()))
    loss.backward()
    close(loss, arrays["loss"])
    close(student.grad, arrays["grad"])  # type: ignore[arg-type]


def test_outputs_of_regions() -> None:
    arrays = {name: torch.from_numpy(np.asarray(value)) for name, value in golden("nsa/output_vector_cls.npz").items()}
    objects = arrays["label"] > 0
    close(row_distance(arrays["st"], arrays["tc"], objects, ~objects), arrays["loss"])
    arrays = {
        name: torch.from_numpy(np.asarray(value)) for name, value in golden("nsa/output_vector_box_flip.npz").items()
    }
    objects, rows = arrays["label"] > 0, torch.arange(len(arrays["label"]))
    for name, mirrored in (("noflip", rows < 0), ("flip0", rows < len(rows) // 2)):  # the first of two images
        turned = mirrored_deltas(arrays["tc"], mirrored)
        close(row_distance(arrays["st"], turned, objects, ~objects), arrays[f"loss_{name}"])


def test_positions_with_texture() -> None:
    """The authors measure from the lowest value of the batch."""
    arrays = golden("nsa/texture_mask.npz")
    z = texture(torch.from_numpy(arrays["feat"]))
    weak, strong = arrays["eta"].tolist()
    found = texture_classes(z, weak, strong, lowest=z.amin().expand(len(z), 1, 1))
    np.testing.assert_array_equal(found.numpy(), arrays["mask"])
