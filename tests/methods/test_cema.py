"""CEMA: its filter, its loss and its normalisation against the authors' code, what is uploaded, and what it needs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_vectors import golden
from torch import Tensor, nn
from vector_stream import Trained

from dafw.errors import UserError
from dafw.losses.distillation import selective_distillation, sureness
from dafw.losses.entropy import entropy
from dafw.methods import CEMA
from dafw.nn.layout import BatchLayout, StreamStatistics
from dafw.nn.network import Network
from dafw.nn.norm import DomainBatchNorm
from dafw.nn.uploads import UploadFilter, Uploads
from dafw.testing import case
from dafw.testing.cases import TINY

NET = "dafw.testing.toys.ToyNet"
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
RENORM = StreamStatistics("renorm", 0.1)


def vectors() -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in golden("cema/cema.npz").items()}


def test_distillation_is_that_of_the_authors() -> None:
    v = vectors()
    edge, cloud = v["edge_logits"], v["found_logits"]
    names = {"entropy_weight": "alpha", "distillation_weight": "beta", "label_weight": "gamma"}
    weights = {name: float(v[key]) for name, key in names.items()}
    found = selective_distillation(edge, cloud, most=float(v["E_max"]), **weights)
    torch.testing.assert_close(found, v["loss_T1"], **CLOSE)
    plain = selective_distillation(edge, cloud, most=None, temperature=2.0, **weights)
    torch.testing.assert_close(plain, v["loss_T2_noweight"], **CLOSE)


def test_distillation_compares_the_cloud_with_the_edge_and_moves_the_edge_alone() -> None:
    edge = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    cloud = torch.tensor([[5.0, 0.0, -5.0]], requires_grad=True)
    alone = {"entropy_weight": 0.0, "label_weight": 0.0, "distillation_weight": 1.0}
    loss = selective_distillation(edge, cloud, most=None, **alone)
    p = cloud.detach().softmax(1)
    torch.testing.assert_close(loss.detach(), (p * (p.log() + torch.tensor(3.0).log())).sum())
    loss.backward()
    assert cloud.grad is None
    assert edge.grad is not None
    entropies = torch.tensor([0.3, 0.5, 0.7])
    found = sureness(entropies, 0.5)
    assert found[1] == 1
    assert found[0] > 1 > found[2]


def test_a_row_is_sent_if_the_authors_send_it() -> None:
    v = vectors()
    batches = v["edge_logits"], v["logits2"]
    kept, thresholds = [v["kept1"], v["kept2"]], [v["thr1"], v["thr2"]]
    options: dict[str, Any] = {"least": float(v["E_min"]), "most": float(v["E_max"]), "scale": float(v["lam"])}
    classes = v["logits2"].shape[1]
    by_entropy = UploadFilter(classes, redundancy=2.0, warm_up=len(batches[0]), **options)
    for logits, rows, threshold in zip(batches, kept, thresholds, strict=True):
        chosen = by_entropy(logits, entropy(logits))
        assert torch.equal(chosen.nonzero().flatten(), rows)
        torch.testing.assert_close(by_entropy.threshold, threshold.float(), **CLOSE)
    all_pass: dict[str, Any] = {"least": 0.0, "most": 99.0, "scale": 1.0, "warm_up": None}
    by_likeness = UploadFilter(classes, redundancy=float(v["sim_margin"]), **all_pass)
    for number, logits in enumerate(batches, 1):
        chosen = by_likeness(logits, entropy(logits))
        assert torch.equal(chosen.nonzero().flatten(), v[f"sim_kept{number}"])
        torch.testing.assert_close(by_likeness.mean_probability, v[f"pbar{number}"], **CLOSE)


def test_renormalisation_is_that_of_the_authors() -> None:
    v = vectors()
    layer = DomainBatchNorm(len(v["tbr_w"]), layout=BatchLayout(stream=StreamStatistics("average", 1.0))).eval()
    assert layer.weight is not None
    assert layer.bias is not None
    layer.weight.data, layer.bias.data = v["tbr_w"], v["tbr_b"]
    torch.testing.assert_close(layer(v["tbr_x1"]).detach(), v["tbr_y1"], **CLOSE)
    torch.testing.assert_close(layer.running_mean, v["tbr_mean1"].flatten(), **CLOSE)
    torch.testing.assert_close(layer.running_var, v["tbr_var1"].flatten(), **CLOSE)
    layer.layout.stream = RENORM
    x = v["tbr_x2"].clone().requires_grad_(True)
    y = layer(x)
    torch.testing.assert_close(y.detach(), v["tbr_y2"], **CLOSE)
    (gradient,) = torch.autograd.grad((y**2).sum(), x)
    torch.testing.assert_close(gradient, v["tbr_gradx2"], rtol=1e-3, atol=1e-4)


def test_renormalisation_predicts_by_running_statistics_and_learns_by_those_of_the_batch() -> None:
    torch.manual_seed(0)
    layer, x = DomainBatchNorm(3).double().eval(), torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    plain = layer(x)
    layer.layout.stream = RENORM
    with layer.layout.untracked():
        renormalised = layer(x)
    torch.testing.assert_close(renormalised, plain)
    assert layer.running_mean is not None
    assert not layer.running_mean.any()  # nothing was tracked
    one, other = (torch.autograd.grad((y**3).sum(), x)[0] for y in (plain, renormalised))
    assert not torch.allclose(one, other)


def test_the_latest_uploads_are_kept_and_full_batches_leave_in_their_order() -> None:
    uploads = Uploads(batch=3, capacity=4)
    rows = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)
    assert uploads.add(rows[:2]) == []
    first, second = uploads.add(rows[2:7])
    assert (first.flatten().tolist(), second.flatten().tolist()) == ([0, 1, 2], [3, 4, 5])
    assert (uploads.waiting.flatten().tolist(), uploads.kept.flatten().tolist()) == ([6], [3, 4, 5, 6])
    drawn = uploads.sample(3, torch.Generator().manual_seed(0)).flatten().tolist()
    assert len(set(drawn)) == 3
    assert set(drawn) <= {3, 4, 5, 6}
    again = Uploads(batch=3, capacity=4)
    again.load_state_dict(uploads.state_dict())
    assert again.kept.dtype == torch.uint8
    assert torch.equal(again.kept, uploads.kept)


def test_only_sent_rows_count_and_both_networks_learn(tmp_path: Path) -> None:
    method, _ = case(CEMA).train(tmp_path)
    assert isinstance(method, CEMA)
    sent = int(method.served.used.sum())
    assert 0 < sent < len(method.served.used)
    assert len(method.uploads.kept) == min(sent, method.uploads.capacity)
    assert len(method.uploads.waiting) == sent % method.uploads.batch
    for network in (method.network, method.cloud):
        start = method.start.module.state_dict()
        moved = [name for name, value in network.named_parameters() if not torch.equal(value, start[name])]
        assert moved == ["backbone.norm.weight", "backbone.norm.bias"]


def test_distillation_leaves_the_cloud_as_it_is() -> None:
    method = CEMA(Trained(NET), num_classes=3, cloud=Trained(NET), statistics_start="source")
    images, moved = torch.rand(4, 3, 6, 6), []
    method.gradients = lambda loss, parameters: moved.append(parameters) or torch.autograd.grad(loss, parameters)  # type: ignore[assignment,func-returns-value]
    method.apply_gradients = lambda *_: None  # type: ignore[method-assign]
    method.distil(images)
    learnt = {id(one) for one in method.network.parameters() if one.requires_grad}
    assert {id(one) for one in moved[0]} == learnt


def test_without_an_upload_nothing_moves(tmp_path: Path) -> None:
    item = case(CEMA, **{**TINY["CEMA"], "margin": 0.0})
    method, trainer = item.train(tmp_path)
    assert isinstance(method, CEMA)
    assert not method.served.used.any()
    assert not trainer.optimizers[0].state
    assert all(torch.equal(one, other) for one, other in zip(*(weights(method)), strict=True))


def weights(method: CEMA) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    return list(method.network.parameters()), list(method.start.module.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cloud": Network(NET)}, "model.cloud_checkpoint must be given"),
        ({"cloud": Trained(NET), "ema_decay": 0.9}, "leave out model.ema_decay"),
        ({"cloud": Trained(NET), "statistics_start": "target"}, "statistics_start"),
    ],
)
def test_what_it_needs(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CEMA(Trained(NET), num_classes=3, **options)


def test_a_missing_cloud_is_named_when_training_starts(tmp_path: Path) -> None:
    cloud = {"cloud": Network(NET), "cloud_checkpoint": str(tmp_path / "nothing.ckpt")}
    method = CEMA(Trained(NET), num_classes=3, **cloud)
    with pytest.raises(UserError, match=r"nothing.ckpt \(model.cloud_checkpoint\)"):
        method.check_start()
