"""Values of the published code of DACS, DAFormer and MIC, see tests/golden/dacs_daformer and tests/golden/mic."""

import numpy as np
import pytest
import torch
from golden_vectors import golden
from torch import Tensor, nn

from dafw.data.padding import IGNORE
from dafw.data.rare_classes import rare_class_shares
from dafw.losses.feature_distance import feature_distance, majority_labels
from dafw.losses.pseudo_labels import weighted_masks
from dafw.nn.class_mix import block_mask, class_mask, paste
from dafw.nn.teacher import Teacher
from dafw.problems import MaskOutputs, Segmentation

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def test_half_of_the_classes_are_pasted() -> None:
    """The authors draw from the classes of all images of the batch, and the ignored pixels are one of them."""
    arrays = golden("dacs_daformer/classmix.npz")
    labels = arrays["label"][:, 0]
    values, codes = np.unique(labels, return_inverse=True)
    rows = torch.tensor(codes.reshape(1, -1, labels.shape[2]))
    np.random.seed(int(arrays["np_seed"]))
    for row, mask in enumerate(arrays["mask"][:, 0]):
        chosen = np.random.choice(len(values), (len(values) + 1) // 2, replace=False)
        scores = torch.ones(1, len(values))
        scores[0, chosen] = 0.0
        found = class_mask(rows, scores).view(labels.shape)[row]
        np.testing.assert_array_equal(found.numpy(), mask.astype(bool))


def test_mixed_images_labels_and_weights() -> None:
    arrays = golden("dacs_daformer/classmix.npz")
    pasted = torch.tensor(arrays["mask"][:, 0]).bool()
    images = paste(pasted, torch.tensor(arrays["img_s"]), torch.tensor(arrays["img_t"]))
    np.testing.assert_allclose(images.numpy(), arrays["mixed_img"], rtol=1e-6, atol=1e-6)
    pseudo, probability = torch.tensor(arrays["pseudo"]), torch.tensor(arrays["pseudo_prob"]).double()
    classes = int(pseudo.max()) + 1
    others = ((1 - probability) / (classes - 1)).log()[:, None].repeat(1, classes, 1, 1)
    logits = others.scatter(1, pseudo[:, None], probability.log()[:, None])
    threshold, top = float(arrays["threshold"]), int(arrays["ignore_top"])
    labels, weights, _ = weighted_masks(logits, threshold, ignore_top=top)
    mixed = paste(pasted, torch.tensor(arrays["label"][:, 0]), labels.long())
    np.testing.assert_array_equal(mixed.numpy(), arrays["mixed_label"][:, 0])
    weights = weights.masked_fill(pasted, 1)
    np.testing.assert_allclose(weights.numpy(), arrays["mixed_weight"][:, 0], **TOLERANCE)


def test_shares_of_rare_classes() -> None:
    arrays = golden("dacs_daformer/rcs.npz")
    for temperature, expected in zip(arrays["T"], arrays["p"], strict=True):
        found = rare_class_shares(arrays["pixel_counts"], float(temperature))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)


def test_decay_of_the_teacher() -> None:
    arrays = golden("dacs_daformer/ema_alpha.npz")
    student = nn.Linear(1, 1, bias=False).double()
    teacher = Teacher(student, float(arrays["alpha"].max()), warmup=True)
    wanted = dict(zip(arrays["it"].tolist(), arrays["alpha"].tolist(), strict=True))
    with torch.no_grad():
        student.weight.fill_(1.0)
        for step in range(1, max(wanted) + 1):
            weight = next(teacher.parameters()).zero_()
            teacher.step()
            if step in wanted:
                assert 1 - float(weight) == pytest.approx(wanted[step])


def test_feature_distance() -> None:
    arrays = golden("dacs_daformer/feature_distance.npz")
    labels, down = torch.tensor(arrays["label"][:, 0]), arrays["down"][:, 0]
    known = max(int(labels[labels != IGNORE].max()), int(arrays["classes"].max())) + 1
    found = majority_labels(labels, down.shape[1:], float(arrays["min_ratio"]), known)
    np.testing.assert_array_equal(found.numpy(), down)
    where = torch.isin(found, torch.tensor(arrays["classes"]))
    distance = feature_distance(torch.tensor(arrays["feat"]), torch.tensor(arrays["feat_imnet"]), where)
    assert float(distance) == pytest.approx(float(arrays["fdist"]), rel=1e-5)


def test_hidden_blocks() -> None:
    arrays = golden("mic/masks.npz")
    for k in range(sum(name.startswith("image") for name in arrays)):
        image = torch.tensor(arrays[f"image{k}"])
        canvas = (image.shape[2], image.shape[3])
        sizes = torch.tensor([canvas] * len(image))
        numbers = torch.tensor(arrays[f"random{k}"][:, 0])
        visible = block_mask(numbers, sizes, canvas, int(arrays[f"block_size{k}"]), float(arrays[f"ratio{k}"]))
        np.testing.assert_array_equal(visible.numpy(), arrays[f"mask{k}"][:, 0].astype(bool))
        np.testing.assert_allclose((image * visible[:, None]).numpy(), arrays[f"masked{k}"])


def test_the_masked_images_loss() -> None:
    arrays = golden("mic/weights_and_losses.npz")
    ignored = {f"ignore_{side}": int(arrays[f"ignore_{side}"]) for side in ("top", "bottom")}
    teacher = torch.tensor(arrays["seg_teacher_logits"])
    labels, weights, share = weighted_masks(teacher, float(arrays["threshold"]), **ignored)
    np.testing.assert_array_equal(labels.numpy(), arrays["seg_pseudo_label"])
    np.testing.assert_allclose(weights.numpy(), arrays["seg_weight"], **TOLERANCE)
    assert float(share) == pytest.approx(float(arrays["seg_quality"]))
    logits = torch.tensor(arrays["seg_student_logits"], requires_grad=True)
    loss = weighted(logits, labels, weights)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(arrays["seg_loss"]), rel=1e-5)
    np.testing.assert_allclose(logits.grad, arrays["seg_grad"], rtol=1e-4, atol=1e-7)
    holes = torch.tensor(arrays["seg_label_with_ignore"]).to(torch.uint8)
    loss = weighted(logits.detach(), holes, weights)  # the authors divide by all pixels, we by the labelled ones
    share_labelled = float((holes != IGNORE).double().mean())
    assert float(loss) * share_labelled == pytest.approx(float(arrays["seg_loss_with_ignore"]), rel=1e-5)


def weighted(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return Segmentation().weighted_loss(MaskOutputs(logits[:, :1], logits), labels, weights)
