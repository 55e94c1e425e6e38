"""OVANet: its loss by hand, its rows of length 1, its rejection, its two kinds of control."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from private_classes import judge, train
from torch import Tensor
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import OVANet, SourceOnly
from dafw.problems import Outputs
from dafw.testing import case
from dafw.testing.cases import differences
from dafw.testing.toys import toy_network


class Steps(pl.Callback):
    """Notes the lengths of the open classifiers' rows before each step's forward."""

    def __init__(self) -> None:
        self.lengths: list[Tensor] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, OVANet)
        self.lengths.append(pl_module.open.weight.detach().norm(dim=1).clone())


@pytest.mark.parametrize("normalise", [True, False])
def test_rows_of_length_one_at_each_step(normalise: bool, tmp_path: Path) -> None:
    steps = Steps()
    item = case(OVANet, normalise_open=normalise)
    method, _ = item.train(tmp_path, callbacks=[steps])
    assert isinstance(method, OVANet)
    lengths = torch.stack(steps.lengths)
    assert lengths.shape == (8, 6)
    assert torch.allclose(lengths, torch.ones(()), atol=1e-6) == normalise
    assert not torch.allclose(method.open.weight.norm(dim=1), torch.ones(()), atol=1e-6)  # not after the last


class LogsNothing(OVANet):
    """Diagnoses no step, so that it needs no trainer."""

    logs_this_step = False


def test_terms_by_hand() -> None:
    method = LogsNothing(toy_network(), num_classes=3, weight=0.3, open_weight=0.7).double()
    images = torch.rand(9, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1])
    batch = Batch(images, labels, torch.tensor([0] * 4 + [1] * 5), torch.arange(9), 4)
    method.eval()
    terms = method.losses(batch)
    outputs = method.forward_rows(images, 4)
    p = torch.stack([(F.linear(f, method.open.weight)).view(3, 2).softmax(1) for f in outputs.features])
    own = sum(-p[i, y, 1].log() for i, y in enumerate(labels.tolist()))
    others = sum(max(-p[i, k, 0].log() for k in range(3) if k != y) for i, y in enumerate(labels.tolist()))
    entropies = [-(q * q.log()).sum() for row in p[4:] for q in row]
    torch.testing.assert_close(terms["supervised"], F.cross_entropy(outputs.logits[:4], labels))
    torch.testing.assert_close(terms["one_vs_all"], 0.7 * (own + others) / 4)
    torch.testing.assert_close(terms["open_entropy"], 0.3 * torch.stack(entropies).mean())
    assert sorted(terms) == ["one_vs_all", "open_entropy", "supervised"]


def test_rejected_is_what_the_predicted_classs_classifier_takes_for_another() -> None:
    method = OVANet(toy_network(), num_classes=3)
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    scores = method.unknown_scores(Outputs(features, logits))
    opened = (features @ method.open.weight.T).view(50, 3, 2)
    rule = [bool(opened[i, k, 0] > opened[i, k, 1]) for i, k in enumerate(logits.argmax(1).tolist())]
    assert (scores > 0).tolist() == rule
    assert 5 < sum(rule) < 45
    assert scores.abs().max() <= 0.5
    stricter = OVANet(toy_network(), num_classes=3, threshold=0.9)
    stricter.load_state_dict(method.state_dict())
    torch.testing.assert_close(stricter.unknown_scores(Outputs(features, logits)), scores - 0.4)
    undecided = torch.zeros(1, 8)
    assert method.unknown_scores(Outputs(undecided, logits[:1])).tolist() == [0]  # and so not rejected


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold: float) -> None:
    with pytest.raises(UserError, match=rf"model\.threshold is a probability between 0 and 1, not {threshold}"):
        OVANet(toy_network(), num_classes=3, threshold=threshold)


def test_without_either_term_it_is_source_only(tmp_path: Path) -> None:
    """Bit for bit; the control alone keeps what rejects."""
    ours, _ = case(OVANet, weight=0.0, open_weight=0.0).train(tmp_path)
    plain, _ = case(SourceOnly, norm="separate", forward_target=True).train(tmp_path)
    assert not differences(ours.network.state_dict(), plain.network.state_dict())
    control, _ = case(OVANet, **OVANet.control).train(tmp_path)
    assert isinstance(control, OVANet)
    assert differences(control.state_dict(), ours.state_dict())["open.weight"] > 1e-3


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_training_leaves_few_mistakes(weight: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = OVANet(toy_network("private_classes.TwoLayers"), num_classes=4, lr=0.05, weight=weight)
    before = judge(method)
    train(method, tmp_path)
    known, private = judge(method)
    assert before[0] + before[1] > 0.8
    assert known < 0.1
    assert private < 0.4
