"""CAFA: the source's Gaussians, what its loss moves, and what it needs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from vector_stream import Trained

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.gaussians import whitening
from dafw.methods import CAFA
from dafw.testing import case

NET = "dafw.testing.toys.ToyNet"


class Features(pl.Callback):
    """Computes the Gaussians of the source from all of its features at once, before the first step."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, index: int) -> None:
        """By the start model, with its running statistics."""
        if index == 0:
            (domain,) = pl_module.data.source_domains("train")
            with torch.no_grad():
                pairs = [(pl_module.start_outputs(one).features, one.y) for one in samples(pl_module, domain)]
            features, labels = (torch.cat(parts).double().numpy() for parts in zip(*pairs, strict=True))
            self.groups = [features[labels == label] for label in range(pl_module.num_classes)]


def samples(method: CAFA, domain: Any) -> Any:
    return method.data.shuffled_once([domain], None, 16, 5)


@pytest.mark.parametrize("per_class", [False, True])
def test_gaussians_are_those_of_the_source_and_in_the_checkpoint(per_class: bool, tmp_path: Path) -> None:
    noted = Features()
    made = case(CAFA, per_class_covariance=per_class, shrinkage=0.1).with_source()
    method, trainer = made.train(tmp_path, callbacks=[noted])
    assert isinstance(method, CAFA)
    np.testing.assert_allclose(method.means, [group.mean(0) for group in noted.groups], rtol=1e-4, atol=1e-5)
    apart = [group - group.mean(0) for group in noted.groups]
    if not per_class:
        apart = [np.concatenate(apart)]
    sigma = torch.as_tensor(np.stack([group.T @ group / len(group) for group in apart]))
    torch.testing.assert_close(method.whiten.double(), whitening(sigma, 0.1), rtol=1e-3, atol=1e-4)
    assert method.present.all()
    trainer.save_checkpoint(tmp_path / "now.ckpt")
    kept = torch.load(tmp_path / "now.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[name], getattr(method, name)) for name in ("means", "whiten", "present"))


def outputs(method: CAFA, count: int = 6) -> Any:
    torch.manual_seed(0)
    method.means.normal_()
    method.whiten.copy_(torch.eye(method.means.shape[1]))
    method.present.fill_(True)
    return method.forward_rows(torch.rand(count, *SHAPE), 0)


SHAPE = (3, 6, 6)


def test_only_features_get_a_gradient_and_a_constant_in_the_logits_does_not_matter() -> None:
    method = CAFA(Trained(NET), num_classes=3, learns="network")
    found = outputs(method)
    loss = method.adapt(found, None)["alignment"]  # type: ignore[arg-type]
    by_features, by_logits = torch.autograd.grad(
        loss, [found.features, found.logits], allow_unused=True, retain_graph=True
    )
    assert by_features.abs().sum() > 0
    assert by_logits is None
    assert not any(one.requires_grad for one in method.network.label_head().parameters())
    shifted = replace(found, logits=found.logits + 7)
    assert torch.equal(method.adapt(shifted, None)["alignment"], loss)  # type: ignore[arg-type]


def test_no_row_counts_as_predicted_to_be_of_a_class_without_a_sample() -> None:
    method = CAFA(Trained(NET), num_classes=3)
    found = replace(outputs(method), logits=torch.tensor([[5.0, 3.0, 1.0]]).repeat(6, 1))
    method.present[0] = False
    apart = (found.features[:, None] - method.means).square().sum(2)
    expected = ((apart[:, 1] + 1e-6).log() - (apart[:, 2] + 1e-6).log()).mean()
    torch.testing.assert_close(method.adapt(found, None)["alignment"], expected)  # type: ignore[arg-type]


def test_what_cannot_learn_is_refused_and_a_control_uses_nothing_of_the_source() -> None:
    with pytest.raises(UserError, match=r"nothing before the label head learns \(model\.learns head\)"):
        CAFA(Trained(NET), num_classes=3, learns="head")
    with pytest.raises(UserError, match="shrinkage must be above 0 and at most 1"):
        CAFA(Trained(NET), num_classes=3, shrinkage=0.0)
    uses = [CAFA(Trained(NET), num_classes=3, learns=learns).source_use for learns in ("norm", "nothing")]
    assert uses == ["statistics", "nothing"]
