"""DRM's other choices of the heads: by the nearest source's features, or by a domain classifier."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import DRM, DRMRetraining
from dafw.testing import case
from dafw.testing.cases import BATCH, differences

SELECT = ("cosine", "distance", "domain_classifier")


def of_sources(**arguments: Any) -> DRM:
    """A DRM of two sources in evaluation mode, whose heads differ much."""
    method = case(DRM, **arguments).make().eval()
    assert isinstance(method, DRM)
    for head in method.heads:
        torch.nn.init.normal_(head.weight, std=3.0)  # type: ignore[arg-type]
    return method


def images(rows: int = 7) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(rows, 3, 6, 6)


def own(method: DRM, features: Tensor) -> Tensor:
    """The probabilities of the sources' own heads, (S, n, K)."""
    return torch.stack([head(features) for head in method.heads]).softmax(-1)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5, math.inf])
@pytest.mark.parametrize("select", SELECT)
def test_the_nearest_source_decides_for_each_sample(select: str, gamma: float) -> None:
    method, x = of_sources(select=select, gamma=gamma, p=3.0), images()
    features = method.network(x).features
    if method.recent is not None and method.kept is not None:
        method.recent[:, 0] = features[[1, 4]] + 0.01 * torch.rand(2, features.shape[1])
        method.kept.fill_(1)
        nearness = {
            "cosine": F.cosine_similarity(features[None], method.prototypes[:, None], dim=-1),
            "distance": 1 / torch.cdist(method.prototypes, features, p=3.0),
        }[select]
    else:
        assert method.domain_classifier is not None
        nearness = method.domain_classifier(features).softmax(1).T
    nearest = F.one_hot(nearness.argmax(0), 2).T.float()
    weights = nearest if math.isinf(gamma) else nearness.clamp_min(1e-8) ** gamma
    weights = weights / weights.sum(0)
    expected = (weights[..., None] * own(method, features)).sum(0)
    found = method(x).logits
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(len(x)))
    alone = torch.cat([method(row).logits for row in x.split(1)])
    torch.testing.assert_close(found, alone)
    if math.isinf(gamma) and select != "domain_classifier":
        assert (int(nearest[:, 1].argmax()), int(nearest[:, 4].argmax())) == (0, 1)


def test_the_least_dissimilar_source_counts_even_if_no_cosine_is_positive() -> None:
    method = of_sources(select="cosine", gamma=math.inf)
    assert method.recent is not None
    assert method.kept is not None
    method.kept.fill_(1)
    features = torch.ones(1, method.network.num_features)
    method.recent[:, 0] = -features
    method.recent[0, 0, 0] = -9.0
    assert int(method.unlikeness(features).argmin()) == 0
    method.recent[0, 0, 0], method.recent[1, 0, 0] = -1.0, -9.0
    assert int(method.unlikeness(features).argmin()) == 1


def test_prototypes_are_means_of_the_last_batches_alone() -> None:
    method = of_sources(select="distance", memory=2)
    method.train()
    seen = []
    for step in range(3):
        method.steps_started = step + 1
        x = images(2 * BATCH) + step
        domain = torch.arange(2).repeat_interleave(BATCH)
        batch = Batch(x, torch.arange(2 * BATCH) % 3, domain, torch.arange(2 * BATCH), 2 * BATCH)
        method.losses(batch)
        assert len(method._proposed) == 2
        method.commit(batch)
        with torch.no_grad():
            seen.append(method.forward_batch(batch).features.unflatten(0, (2, BATCH)).mean(1))
        torch.testing.assert_close(method.prototypes, torch.stack(seen[-2:]).mean(0))


def test_no_choice_changes_what_the_network_and_its_heads_learn(tmp_path: Path) -> None:
    trained = {}
    for select in ("entropy", *SELECT):
        method, _ = case(DRM, select=select, width=8, memory=3).train(tmp_path)
        trained[select] = {
            name: value for name, value in method.state_dict().items() if name.startswith(("network", "heads"))
        }
    for select in SELECT:
        assert not differences(trained["entropy"], trained[select]), select


def test_a_domain_classifier_learns_the_sources_from_features_that_it_leaves_alone() -> None:
    method = case(DRM, select="domain_classifier", width=8).make()
    assert isinstance(method, DRM)
    assert method.domain_classifier is not None
    source, n = torch.arange(2).repeat_interleave(BATCH), 2 * BATCH
    batch = Batch(images(n), torch.arange(n) % 3, source, torch.arange(n), n)
    term = method.losses(batch)["domain"]
    torch.testing.assert_close(
        term, F.cross_entropy(method.domain_classifier(method.forward_batch(batch).features), source)
    )
    term.backward()  # type: ignore[no-untyped-call]
    learns = {name.partition(".")[0] for name, value in method.named_parameters() if value.grad is not None}
    assert learns == {"domain_classifier"}


@pytest.mark.parametrize("select", SELECT)
def test_without_own_heads_there_is_nothing_to_choose_by(select: str) -> None:
    method = case(DRM, select=select, weight=0.0).make()
    assert isinstance(method, DRM)
    assert (method.recent, method.domain_classifier) == (None, None)
    assert torch.equal(method.eval()(images()).logits, method.network(images()).logits)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mode: authors is of select: entropy; leave it out with select: cosine"):
        case(DRM, mode="authors", select="cosine").make()
    with pytest.raises(UserError, match='unknown select "nearest"'):
        case(DRM, select="nearest").make()
    _, trainer = case(DRM, select="distance").train(tmp_path)
    path = tmp_path / "step=8.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(UserError, match="has select distance, but the retraining mixes heads by their entropies"):
        case(DRMRetraining, checkpoint=str(path)).make()
