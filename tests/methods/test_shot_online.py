"""SHOT online, against losses of the code of T3A's authors and by its properties."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from torch import Tensor

from dafw.data.batch import Batch
from dafw.methods import SHOTOnline, SourceOnly
from dafw.problems import Outputs
from dafw.testing import case
from dafw.testing.toys import toy_network

EXACT = {"rtol": 1e-7, "atol": 1e-9}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a source model."""
    folder = tmp_path_factory.mktemp("start")
    _, trainer = case(SourceOnly).train(folder, epochs=1)
    trainer.save_checkpoint(folder / "step=1.ckpt")
    return str(folder / "step=1.ckpt")


def value(start: str, logits: Tensor, **arguments: Any) -> Tensor:
    method = SHOTOnline(toy_network(), num_classes=3, checkpoint=start, **arguments)
    batch = Batch(logits, [], torch.zeros(len(logits)), torch.arange(len(logits)), 0)
    terms = method.adapt(Outputs(logits, logits), batch)
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("name", ["shot", "shot_im"])
def test_its_losses(name: str, start: str) -> None:
    a = golden("shot_online/losses.npz")
    logits = torch.tensor(a["logits"], requires_grad=True)
    weight = float(a["theta"]) if name == "shot" else 0.0
    loss = value(start, logits, pseudo_weight=weight, confidence=float(a["beta"]))
    np.testing.assert_allclose(loss.detach(), a[f"loss_{name}"], **EXACT)
    np.testing.assert_allclose(torch.autograd.grad(loss, logits)[0], a[f"grad_{name}"], **EXACT)


def test_without_a_confident_row_the_term_is_left_out(start: str) -> None:
    a = golden("shot_online/losses.npz")
    logits = torch.tensor(a["logits_none_confident"])
    loss = value(start, logits, pseudo_weight=float(a["theta"]), confidence=float(a["beta"]))
    np.testing.assert_allclose(loss, a["loss_shot_im_none_confident"], **EXACT)


def test_centroids_label_every_row(start: str) -> None:
    logits = torch.eye(3, dtype=torch.float64).repeat(3, 1)
    one, other = (value(start, logits, pseudo_weight=weight, labels="centroids", weight=0.0) for weight in (0.0, 1.0))
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(3).repeat(3))
    torch.testing.assert_close(other - one, expected)


def test_the_head_stays(tmp_path: Path) -> None:
    item = case(SHOTOnline)
    method, _ = item.train(tmp_path)
    assert torch.equal(method.network.head.weight, method.start.module.head.weight)
    assert not torch.equal(method.network.backbone.conv.weight, method.start.module.backbone.conv.weight)
