"""Losses of unlabelled pixels against vectors of the authors' code, and what padding changes: nothing."""

import pytest
import torch
from golden_vectors import golden

from dafw.losses.pixel_terms import class_ratios, pixel_entropy, ratio_divergence


def test_entropy_and_ratios_are_the_authors() -> None:
    vectors = {name: torch.from_numpy(value) for name, value in golden("sfda_adami/ent_kl_prop.npz").items()}
    logits = vectors["logits"].requires_grad_()
    prior = vectors["prior_pixels"] / (logits.shape[2] * logits.shape[3])
    entropy = pixel_entropy(logits, weights=vectors["weights"])
    torch.testing.assert_close(entropy, vectors["loss_entropy"])
    ratios = class_ratios(logits, ratio="norm_max")
    torch.testing.assert_close(ratios, vectors["est_prop"])
    torch.testing.assert_close(class_ratios(logits), vectors["mean_softmax_prop"])
    divergence = ratio_divergence(ratios, prior)
    torch.testing.assert_close(divergence, vectors["loss_kl"])
    (gradient,) = torch.autograd.grad(entropy + divergence, logits)
    torch.testing.assert_close(gradient, vectors["grad_logits_sum"])


@pytest.mark.parametrize("ratio", ["softmax", "norm_max"])
def test_padding_counts_in_no_mean(ratio: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5)
    padded = torch.nn.functional.pad(logits, (0, 2, 0, 3), value=9.0)
    valid = torch.zeros(2, 7, 7, dtype=torch.bool)
    valid[:, :4, :5] = True
    torch.testing.assert_close(pixel_entropy(padded, valid), pixel_entropy(logits))
    torch.testing.assert_close(class_ratios(padded, valid, ratio), class_ratios(logits, ratio=ratio))  # type: ignore[arg-type]


def test_divergence_of_equal_ratios_is_zero_and_that_of_a_missing_class_is_finite() -> None:
    ratios = torch.tensor([[0.5, 0.3, 0.2]])
    assert float(ratio_divergence(ratios, ratios[0])) == pytest.approx(0, abs=1e-6)
    for direction in ("estimate_prior", "prior_estimate"):
        found = ratio_divergence(ratios, torch.tensor([1.0, 0.0, 0.0]), direction)  # type: ignore[arg-type]
        assert 0 < float(found) < 100
    with_zero = ratio_divergence(ratios, torch.tensor([1.0, 0.0, 0.0]), "prior_estimate")
    assert float(with_zero) == pytest.approx(-torch.tensor(0.5).log().item())


def test_entropy_alone_collapses_and_the_prior_prevents_it() -> None:
    """Two thirds of the pixels lean to class 0; a common offset can move all of them."""
    torch.manual_seed(0)
    pixels = torch.cat([torch.randn(1, 200) + 1.0, torch.randn(1, 100) - 1.0], 1)
    prior = torch.tensor([2 / 3, 1 / 3])
    shares = []
    for weight in (0.0, 3.0):
        offset = torch.zeros((), requires_grad=True)
        for _ in range(300):
            scores = pixels + offset
            logits = torch.stack([scores, -scores], 1)[..., None]
            loss = pixel_entropy(logits) + weight * ratio_divergence(class_ratios(logits), prior)
            (gradient,) = torch.autograd.grad(loss, offset)
            offset = (offset - 0.5 * gradient).detach().requires_grad_()
        shares.append(float(((pixels + offset) > 0).float().mean()))
    assert shares[0] > 0.95
    assert shares[1] == pytest.approx(2 / 3, abs=0.1)
