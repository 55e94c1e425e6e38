"""What every datamodule checks and serves."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from dafw.data import Domain
from dafw.data.roles import Split
from dafw.data.setting import DataRequest
from dafw.data.stream_plan import StreamPlan, StreamSampler, plan_of
from dafw.data.target_stream import TargetStream
from dafw.errors import UserError
from dafw.testing.toys import ToyData, toy_domain
from datamodules.splits import hold_out
from datamodules.stream import check_shares


class Partial(ToyData):
    """Domain b lacks class "two"."""

    def load(self, name: str, split: Split) -> Domain:
        domain = super().load(name, split)
        return domain.subset(np.flatnonzero(np.asarray(domain.labels) != 2)) if name == "b" else domain


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"source": "a", "target": "bb"}, 'unknown domain "bb"'),
        ({"source": ["a", "b"], "target": "b"}, '"b" is both a source and a target'),
        ({"source": "a", "target": "b", "batch_size": 0}, "data.batch_size must be at least 1, not 0"),
        ({"source": "a", "target": "b", "steps_per_epoch": -1}, "data.steps_per_epoch must be at least 1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ToyData(**arguments)


def test_a_batch_larger_than_a_domain() -> None:
    data = ToyData("a", "b", batch_size=41)
    data.setup("fit")
    with pytest.raises(UserError, match="a has 40 training samples, fewer than a batch of 41"):
        data.train_dataloader()


def test_label_sets() -> None:
    with pytest.raises(UserError, match=r'class "two" is in a but not in b, although data\.label_sets is closed'):
        Partial("a", "b").setup("fit")
    with pytest.raises(UserError, match=r'class "two" is in a but not in b, although data\.label_sets is closed'):
        Partial("b", "a").setup("fit")


def test_several_sources_and_targets() -> None:
    data = ToyData(["a", "c"], "b", batch_size=4, target_batch_size=6)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.domain.tolist() == [0] * 4 + [1] * 4 + [2] * 6
    assert batch.num_source == len(batch.y) == 8
    assert data.task == "a,c->b"


def test_an_oracle_run_takes_the_labels_of_the_target_by_name() -> None:
    data = ToyData("a", "b", batch_size=4, oracle=True)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    labels = np.asarray(data.load("b", "train").labels)
    assert batch.y.tolist() == labels[batch.index[:4].numpy()].tolist()
    assert [domain.name for domain in data.train_domains] == ["b", "b"]


def test_evaluation_loaders() -> None:
    data = ToyData("a", "b", eval_batch_size=8, evidence_samples=10)
    found = data.evaluations("validate")
    assert [one.role for one in found] == ["source_train", "source_val", "target_val", "target_test"]
    assert len(found[0].domain) == 10
    assert found[0].domain.labels is None
    for one, loader in zip(found, data.val_dataloader(), strict=True):
        indices = torch.cat([batch.index for batch in loader])
        assert indices.tolist() == list(range(len(one.domain)))
    assert [one.role for one in data.evaluations("test")] == ["source_test", "target_test"]


def test_prediction_sees_no_labels() -> None:
    (loader,) = ToyData("a", "b").predict_dataloader()
    assert all(batch.num_source == 0 and len(batch.y) == 0 for batch in loader)


def test_a_view_that_the_datamodule_lacks() -> None:
    from datamodules.base import DomainDataModule

    with pytest.raises(UserError, match='ToyData has no augmentation "strong"'):
        DomainDataModule.view(ToyData("a", "b"), "strong")


def test_held_out_samples_are_a_stream_of_their_own() -> None:
    data = ToyData("a", ["b", "c"], batch_size=4, count=43)
    data.trainer = cast(
        Any,
        SimpleNamespace(
            lightning_module=SimpleNamespace(data_request=DataRequest(held_out=0.2)), global_rank=0, world_size=1
        ),
    )
    data.setup("fit")
    loader = data.train_dataloader()
    assert [(domain.name, len(domain)) for domain in data.train_domains] == [
        ("a", 43), ("b", 35), ("c", 35), ("b/held-out", 8), ("c/held-out", 8),
    ]  # fmt: skip
    batch = next(iter(loader))
    assert batch.domain.tolist() == [n for n in range(5) for _ in range(4)]
    assert (batch.num_source, batch.num_held_out, len(batch)) == (4, 8, 20)
    for kept, held in ((1, 3), (2, 4)):
        ids = [{data.train_domains[n].id(i) for i in range(len(data.train_domains[n]))} for n in (kept, held)]
        whole = data.load("bc"[kept - 1], "train")
        assert ids[0].isdisjoint(ids[1])
        assert ids[0] | ids[1] == {whole.id(i) for i in range(len(whole))}
        assert data.train_domains[kept].labels is data.train_domains[held].labels is None


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5])
def test_what_is_held_out_does_not_depend_on_the_order_of_the_samples(share: float) -> None:
    domain = toy_domain("b", 97)
    rest, held = hold_out(domain, share)
    assert len(held) == int(97 * share)
    assert len(rest) + len(held) == 97
    shuffled = domain.subset(np.random.default_rng(0).permutation(97))
    again = hold_out(shuffled, share)[1]
    assert {held.id(i) for i in range(len(held))} == {again.id(i) for i in range(len(again))}
    assert [held.id(i) for i in range(len(held))] != [again.id(i) for i in range(len(again))]


def test_an_oracle_has_nothing_to_hold_out() -> None:
    data = ToyData("a", "b", batch_size=4, oracle=True)
    data.trainer = cast(
        Any,
        SimpleNamespace(
            lightning_module=SimpleNamespace(data_request=DataRequest(held_out=0.2)), global_rank=0, world_size=1
        ),
    )
    with pytest.raises(UserError, match=r"data\.oracle trains on all of the target"):
        data.setup("fit")


def test_ranks_that_cannot_share_a_stream() -> None:
    domains = [toy_domain("b", 20), toy_domain("c", 21)]

    def plan(count: int, size: int) -> StreamPlan:
        names = [domain.name for domain in domains[:count]]
        return plan_of(TargetStream(), names, domains[:count], seed=0, batch_size=size)

    with pytest.raises(UserError, match="2 ranks cannot share the last batch of 1 of the 21 samples of c equally"):
        check_shares(plan(2, 4), 2)
    with pytest.raises(UserError, match="2 ranks cannot share a batch of 5 of the 20 samples of b equally"):
        check_shares(plan(2, 5), 2)
    check_shares(plan(1, 8), 2)
    assert len(StreamSampler(plan(1, 8), world_size=2)) == 3


def test_an_unknown_order_of_the_stream() -> None:
    with pytest.raises(UserError, match='unknown stream_order "sorted"'):
        ToyData("a", "b", stream_order="sorted")  # type: ignore[arg-type]


def test_class_balanced_sources() -> None:
    """Labels of the sources alone decide: a target has none, and its order is the usual one."""
    targets = []
    for sampling in (None, "class_balanced"):
        data = ToyData(["a", "c"], "b", batch_size=6, source_sampling=sampling)  # type: ignore[arg-type]
        data.setup("fit")
        batches = [batch for batch, _ in zip(data.train_dataloader(), range(4), strict=False)]
        counts = [
            batch.y[rows].bincount(minlength=3).tolist() for batch in batches for rows in (slice(6), slice(6, 12))
        ]
        assert all(count == [2, 2, 2] for count in counts) == (sampling is not None)
        targets.append([batch.index[12:].tolist() for batch in batches])
    assert targets[0] == targets[1]


def test_classes_of_samples_with_labels_of_many_parts_cannot_be_balanced() -> None:
    data = ToyData("a", "b", source_sampling="class_balanced")
    with pytest.raises(UserError, match=r"data\.source_sampling class_balanced needs one class a sample"):
        data._stream(Domain("a", [torch.zeros(3, 4, 4)], [torch.zeros(4, 4)]), 1)
    with pytest.raises(UserError, match="source_sampling"):
        ToyData("a", "b", source_sampling="balanced")  # type: ignore[arg-type]
