"""DCC: what its batches hold, when it clusters, what it rejects, and that it goes on from any step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.callbacks import Checkpointing
from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import DCC
from dafw.methods.adaptation import dcc
from dafw.methods.base import Losses
from dafw.nn.consensus import Clusters, cluster
from dafw.problems import Outputs
from dafw.testing.cases import BATCH, EPOCHS, STEPS_PER_EPOCH, Case, case, differences
from dafw.testing.toys import toy_network

STEPS = EPOCHS * STEPS_PER_EPOCH
TINY = case(DCC).arguments


def small(**changes: Any) -> Case:
    return case(DCC, **{**TINY, **changes})


def make(**changes: Any) -> DCC:
    method = small(**changes).make()
    assert isinstance(method, DCC)
    return method


class Watch(pl.Callback):
    """Notes what each step is of."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.clusterings: list[tuple[int, int]] = []
        self.terms: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, method: Any, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)
        self.clusterings.append((int(method.clustered_at), len(method.prototypes)))
        self.matched, self.codes = method.matched.clone(), method.codes.clone()
        if len(method.codes):
            self.check(batch)

    def check(self, batch: Batch) -> None:
        """The balanced rows are of the same classes on both sides, by label and by pseudo-label, class by class."""
        rows = TINY["classes"] * TINY["per_class"]
        assert len(batch) == 2 * (BATCH + rows)
        assert batch.num_source == len(batch.y) == BATCH + rows
        labels, found = batch.y[BATCH:], self.matched[self.codes[batch.index[-rows:]]]
        assert torch.equal(labels, found)
        assert torch.equal(labels.view(-1, TINY["per_class"])[:, :1].expand(-1, TINY["per_class"]).flatten(), labels)
        assert (batch.domain[: BATCH + rows] == 0).all()
        assert (batch.domain[BATCH + rows :] == 1).all()

    def on_train_batch_end(self, trainer: pl.Trainer, method: Any, *_: Any) -> None:
        self.terms.append(
            {name: float(value) for name, value in method.window[-1].terms.items()} if method.window else {}
        )


def test_an_epoch_starts_with_a_clustering_and_each_step_has_balanced_rows(tmp_path: Path) -> None:
    watch = Watch()
    method, _ = small().train(tmp_path, callbacks=[watch])
    assert [at for at, _ in watch.clusterings] == [0] * STEPS_PER_EPOCH + [STEPS_PER_EPOCH] * STEPS_PER_EPOCH
    assert method.found_k.tolist() == [watch.clusterings[0][1], watch.clusterings[-1][1]]
    assert len({str(batch.index.tolist()) for batch in watch.batches}) == STEPS
    drawn = torch.cat([batch.index[-4:] for batch in watch.batches])
    assert len(drawn.unique()) > 8


def test_no_term_but_the_source_s_before_the_warm_up_is_over(tmp_path: Path) -> None:
    watch = Watch()
    method, _ = small(warmup_steps=STEPS_PER_EPOCH).train(tmp_path, callbacks=[watch], log_every_n_steps=100)
    assert [at for at, _ in watch.clusterings] == [-1] * STEPS_PER_EPOCH + [STEPS_PER_EPOCH] * STEPS_PER_EPOCH
    assert {frozenset(terms) for terms in watch.terms[:STEPS_PER_EPOCH]} == {frozenset({"supervised"})}
    assert "class_discrepancy" in watch.terms[STEPS_PER_EPOCH]
    assert len({len(batch) for batch in watch.batches}) == 1
    assert method.found_k.numel() == 1


def test_without_a_matched_class_the_balanced_rows_have_no_part(tmp_path: Path) -> None:
    watch = Watch()
    watch.check = lambda batch: None  # type: ignore[method-assign]
    method, _ = small(per_class=50).train(tmp_path, callbacks=[watch], log_every_n_steps=100)
    assert (method.matched == -1).all()
    assert all(terms["balanced"] == terms["class_discrepancy"] == 0 < terms["prototypes"] for terms in watch.terms)
    assert (method.unknown_scores(Outputs(torch.randn(5, 8), torch.randn(5, 3))) > 0).all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The checkpoints of a run, one before each step and after the last, and its final state."""
    folder = tmp_path_factory.mktemp("whole")
    method, _ = small().train(folder, callbacks=[Checkpointing(folder, every=1, keep=100)])
    return folder, method.state_dict()


@pytest.mark.parametrize("step", range(1, STEPS))
def test_it_goes_on_from_any_step(whole: tuple[Path, dict[str, Tensor]], step: int, tmp_path: Path) -> None:
    folder, final = whole
    again, _ = small().train(tmp_path, ckpt_path=folder / f"step={step}.ckpt")
    assert again.steps_done == STEPS
    assert not differences(final, again.state_dict())


class Stops(pl.Callback):
    """Stops after the first epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_from_the_end_of_an_epoch_before_the_clustering(
    whole: tuple[Path, dict[str, Tensor]], workers: int, tmp_path: Path
) -> None:
    first, _ = small().train(tmp_path, callbacks=[Stops(), Checkpointing(tmp_path)])
    assert (first.steps_done, int(first.clustered_at)) == (STEPS_PER_EPOCH, 0)
    data = small().make_data(num_workers=workers)
    again, _ = small().train(tmp_path, data=data, ckpt_path=tmp_path / f"step={STEPS_PER_EPOCH}.ckpt")
    assert int(again.clustered_at) == STEPS_PER_EPOCH
    assert not differences(whole[1], again.state_dict())


@pytest.mark.parametrize("step", [None, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH])
def test_workers_load_the_same_batches(whole: tuple[Path, dict[str, Tensor]], step: int | None, tmp_path: Path) -> None:
    folder, final = whole
    path = None if step is None else folder / f"step={step}.ckpt"
    again, _ = small().train(tmp_path, data=small().make_data(num_workers=2), ckpt_path=path)
    assert not differences(final, again.state_dict())


def test_a_clustering_moves_nothing_but_the_clusters(tmp_path: Path) -> None:
    found: list[tuple[dict[str, Tensor], list[bool]]] = []

    class Watched(DCC):
        def recluster(self) -> None:
            states = []
            for call in (super().recluster, lambda: None):
                states.append(
                    ({k: v.clone() for k, v in self.state_dict().items()}, [m.training for m in self.modules()])
                )
                call()
            found.extend(states)

    torch.manual_seed(0)
    method = Watched(toy_network(), num_classes=3, ema_decay=0.5, **TINY)
    small().train(tmp_path, method=method)
    assert len(found) == 2 * EPOCHS
    for before, after in zip(found[::2], found[1::2], strict=True):
        assert before[1] == after[1]
        assert not all(after[1])
        shared = [
            {k: v for k, v in state.items() if k.split(".")[0] in ("network", "ema")} for state, _ in (before, after)
        ]
        assert not differences(*shared)


def test_k_stays_once_two_searches_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[bool] = []

    def watched(*args: Any, start: Tensor | None = None, **options: Any) -> Clusters:
        starts.append(start is not None)
        return cluster(*args, start=start, **options)

    monkeypatch.setattr(dcc, "cluster", watched)
    method, _ = small(k_step=3, k_limit=1.0).train(tmp_path, epochs=4)
    assert starts == [False, False, True, True]
    assert method.found_k.tolist() == [3, 3]


@pytest.mark.parametrize(("k_first", "later"), [(None, [2, 4, 6, 8, 2, 4]), (5, [5, 7, 9, 5])])
def test_the_first_search_starts_at_the_number_of_classes(k_first: int | None, later: list[int]) -> None:
    tried: list[int] = []
    method = make(k_step=2, k_limit=3.0, k_first=k_first)
    data = F.normalize(torch.randn(30, 8), dim=1)
    with pytest.MonkeyPatch.context() as patch:

        def watched(target: Tensor, source: Tensor, labels: Tensor, k: int, **_: Any) -> Clusters:
            tried.append(k)
            return Clusters(torch.zeros(30), torch.zeros(k, 8), torch.empty(0, 2), float(k))

        patch.setattr(dcc, "cluster", watched)
        method.find(data, data, torch.arange(30) % 3)
        method.found_k = torch.tensor([5])
        method.find(data, data, torch.arange(30) % 3)
        method.find(data[:5], data, torch.arange(30) % 3)
    assert tried == [3, 5, 7, 9, *later]


def test_a_sample_of_an_unmatched_cluster_is_unknown() -> None:
    method = make()
    rng = torch.Generator().manual_seed(0)
    axes = torch.eye(8)
    truth = torch.tensor([0, 1, 4, 5]).repeat_interleave(10)
    target = F.normalize(axes[truth] + 0.1 * torch.randn(40, 8, generator=rng), dim=1)
    labels = torch.tensor([0, 1, 2]).repeat_interleave(10)
    source = F.normalize(axes[labels] + 0.1 * torch.randn(30, 8, generator=rng), dim=1)
    outputs = Outputs(3 * target, torch.zeros(40, 3))
    assert (method.unknown_scores(outputs) == -1).all()
    found = cluster(target, source, labels, 4)
    known = {int(j): int(i) for i, j in found.pairs.tolist() if i != 2}
    method.prototypes = F.normalize(found.centres, dim=1)
    method.matched = torch.tensor([known.get(j, -1) for j in range(4)])
    scores = method.unknown_scores(outputs)
    assert torch.equal(scores > 0, truth > 1)
    nearest = (target @ method.prototypes.T).argmax(1)
    assert torch.equal(scores > 0, method.matched[nearest] < 0)
    method.matched = torch.arange(4)
    assert (method.unknown_scores(outputs) < 0).all()


class ExtraTestMetrics(DCC):
    """With a term of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[tuple[int, int]] = []

    def extra_terms(self, batch: Batch, joint: Outputs) -> Losses:
        self.seen.append((len(batch), len(joint)))
        return {"square": 1e-3 * joint.features.square().mean()}


def test_further_terms_see_all_rows_and_train(tmp_path: Path) -> None:
    trained = []
    for owner in (DCC, ExtraTestMetrics):
        torch.manual_seed(0)
        method = owner(toy_network(), num_classes=3, lr=0.05, **TINY)
        small().train(tmp_path / owner.__name__, method=method)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in method.network.parameters()]))
    assert isinstance(method, ExtraTestMetrics)
    assert method.seen == [(24, 24)] * STEPS
    assert not torch.equal(*trained)


def test_terms_by_hand(tmp_path: Path) -> None:
    """The terms of a step from the outputs of one pass, its rows picked one by one."""
    kept: list[tuple[Batch, Losses, Outputs, Tensor]] = []

    class Kept(DCC):
        def forward_rows(self, *arguments: Any) -> Outputs:
            self.last: Outputs = super().forward_rows(*arguments)
            return self.last

        def losses(self, batch: Batch) -> Losses:
            terms = super().losses(batch)
            moved = dict(self._proposed).get("prototypes", self.prototypes)
            kept.append((batch, terms, self.last, moved.clone()))
            return terms

    torch.manual_seed(0)
    method = Kept(toy_network(), num_classes=3, lr=0.05, **{**TINY, "cdd_weight": 0.3, "prototype_weight": 2.0})
    small().train(tmp_path, method=method, epochs=1)
    for step, (batch, terms, outputs, prototypes) in enumerate(kept):
        logits, y = outputs.logits, batch.y
        torch.testing.assert_close(terms["supervised"], F.cross_entropy(logits[:8], y[:8]))
        torch.testing.assert_close(terms["balanced"], F.cross_entropy(logits[8:12], y[8:12]))
        codes = method.codes[batch.index[12:20]]
        scores = F.normalize(outputs.features[12:20], dim=1) @ prototypes.T / 0.1
        ramp = 2.0 * np.exp(-3 * (8 - step) / 8)
        torch.testing.assert_close(terms["prototypes"], ramp * F.cross_entropy(scores, codes))
        intra, inter = dcc.contrastive_discrepancy(outputs.features[8:12], outputs.features[20:24], y[8:12:2])
        torch.testing.assert_close(terms["class_discrepancy"], 0.3 * (intra - inter))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": 0}, "model.classes must be at least 1, not 0"),
        ({"k_first": 0}, "model.k_first must be at least 1, not 0"),
        ({"k_limit": 0.5}, "model.k_limit must be at least 1, not 0.5"),
        ({"temperature": 0.0}, "model.temperature must be a positive number"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(**changes)
