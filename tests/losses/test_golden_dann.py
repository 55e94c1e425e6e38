"""The domain loss and whole training steps against reference programs, see tests/golden/dann/README.md."""

from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from dafw.losses.adversarial import domain_bce
from dafw.losses.entropy import certainty_weights
from dafw.nn.mlp import mlp
from dafw.nn.multilinear import MultilinearMap
from dafw.nn.reversal import reverse_gradient

RTOL, ATOL = 1e-7, 1e-9
LAYERS = {"0": "0", "1": "1", "3": "3", "4": "4", "6_0": "6"}  # the file's name of a layer -> ours


KEYS = {f"{ours}.{kind}": f"{theirs}_{kind}" for theirs, ours in LAYERS.items() for kind in ("weight", "bias")}


def critic_of(arrays: dict[str, NDArray[Any]]) -> nn.Module:
    hidden = [len(arrays["0_bias"]), len(arrays["3_bias"])]
    critic = mlp(arrays["0_weight"].shape[1], hidden, len(arrays["6_0_bias"]), norm=True).double()
    parameters = dict(critic.named_parameters())
    assert parameters.keys() == KEYS.keys()
    for ours, theirs in KEYS.items():
        parameters[ours].data = torch.tensor(arrays[theirs])
    return critic


def test_domain_loss_and_all_its_gradients() -> None:
    arrays = golden("dann/tllib_dann_loss.npz")
    critic = critic_of(arrays)
    parameters = dict(critic.named_parameters())
    for scale, prefix in ((float(arrays["lam"]), "grad"), (-1.0, "plain_grad")):
        critic.zero_grad()
        source, target = (torch.tensor(arrays[key]).requires_grad_(True) for key in ("f_s", "f_t"))
        scores = critic(reverse_gradient(torch.cat([source, target]), scale))
        loss = domain_bce(scores, len(source))
        loss.backward()
        np.testing.assert_allclose(scores.sigmoid().detach(), arrays["d_out"], rtol=RTOL, atol=ATOL)
        np.testing.assert_allclose(loss.item(), arrays["loss"], rtol=RTOL, atol=ATOL)
        for x, key in ((source, f"{prefix}_f_s"), (target, f"{prefix}_f_t")):
            assert x.grad is not None
            np.testing.assert_allclose(x.grad, arrays[key], rtol=RTOL, atol=ATOL)
        for ours, theirs in KEYS.items():  # whatever the scale of the reversal
            np.testing.assert_allclose(parameters[ours].grad, arrays[f"grad_{theirs}"], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("entropy", [False, True])
def test_conditional_domain_loss(entropy: bool) -> None:
    arrays = golden(f"dann/tllib_cdan_{'E_' if entropy else ''}loss.npz")
    source, target = (torch.tensor(arrays[key]).requires_grad_(True) for key in ("f_s", "f_t"))
    logits = torch.cat([torch.tensor(arrays["g_s"]), torch.tensor(arrays["g_t"])])
    join = MultilinearMap(source.shape[1], logits.shape[1])
    features = reverse_gradient(torch.cat([source, target]), float(arrays["lam"]))
    weights = certainty_weights(logits, epsilon=1e-5)
    np.testing.assert_allclose(weights, arrays["weight"], rtol=RTOL, atol=ATOL)
    scores = critic_of(arrays)(join(features, logits.softmax(1)))
    loss = domain_bce(scores, len(source), weights if entropy else None)
    loss.backward()
    np.testing.assert_allclose(loss.item(), arrays["loss"], rtol=RTOL, atol=ATOL)
    for x, key in ((source, "grad_f_s"), (target, "grad_f_t")):
        assert x.grad is not None
        np.testing.assert_allclose(x.grad, arrays[key], rtol=RTOL, atol=ATOL)


def test_shallow_network_after_all_its_steps() -> None:
    arrays = golden("dann/shallow_two_epochs.npz")
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    weights = {name: tensors[f"{name}0"].requires_grad_(True) for name in "WVbcUd"}
    lr, scale, rows = float(arrays["lr"]), float(arrays["lam"]), len(arrays["Xs"])
    assert len(arrays["target_index"]) == int(arrays["epochs"]) * rows
    for t, target in enumerate(arrays["target_index"].tolist()):
        x = torch.stack([tensors["Xs"][t % rows], tensors["Xt"][target]])
        hidden = torch.sigmoid(F.linear(x, weights["W"], weights["b"]))
        logits = F.linear(hidden[:1], weights["V"], weights["c"])
        scores = reverse_gradient(hidden, 1.0) @ weights["U"] + weights["d"]
        # their domain loss is the sum over both domains, and its scale holds for the critic too
        loss = F.cross_entropy(logits, tensors["Ys"][t % rows, None]) + scale * 2 * domain_bce(scores, 1)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for weight, gradient in zip(weights.values(), gradients, strict=True):
                weight -= lr * gradient
    for name, weight in weights.items():
        np.testing.assert_allclose(weight.detach(), arrays[f"{name}2"], rtol=RTOL, atol=ATOL, err_msg=name)
