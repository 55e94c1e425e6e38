"""Test-time methods that move normalisations: against vectors of their authors' code, and what they leave alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from golden_vectors import golden
from numpy.testing import assert_allclose
from vector_stream import Deep, Given, Shallow, Trained, Vectors, follow, network

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import EATA, ETA, SAR, BatchNormAdapt, DeYO, Frozen, RDumb, Tent, TestTimeMethod
from dafw.methods.test_time import deyo
from dafw.nn.norm import norm_parameters

PLAIN: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
EXACT: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}


def shallow(v: Vectors) -> dict[str, Any]:
    names = {"conv1.weight": "conv_w", "conv1.bias": "conv_b", "bn1.weight": "bn_w", "bn1.bias": "bn_b"}
    return {f"backbone.{name}": v[key] for name, key in names.items()} | {
        "head.weight": v["fc_w"],
        "head.bias": v["fc_b"],
    }


def deep(v: Vectors) -> dict[str, Any]:
    layers = {"conv1": "conv1", "bn1": "bn1", "layer4.0": "l4conv", "layer4.1": "l4bn"}
    weights = {f"backbone.{name}.weight": v[f"init_{key}_w"] for name, key in layers.items()}
    biases = {f"backbone.{name}.bias": v[f"init_{key}_b"] for name, key in layers.items()}
    return weights | biases | {"head.weight": v["init_fc_w"], "head.bias": v["init_fc_b"]}


def sgd(v: Vectors, momentum: float = 0.0) -> dict[str, Any]:
    return {"num_classes": 5, "lr": float(v["lr"]), "momentum": momentum, "optimizer": "momentum"}


def only_changed(after: dict[str, torch.Tensor], before: dict[str, Any]) -> list[str]:
    return [name for name, value in before.items() if not np.array_equal(after[name].numpy(), value)]


def test_tent_makes_its_authors_steps(tmp_path: Path) -> None:
    v = golden("tent/tent_two_steps.npz")
    weights = shallow(v)
    method = Tent(network(Shallow, weights, "32-true"), **sgd(v, float(v["momentum"])))
    served, steps = follow(method, [v["x1"], v["x2"]], tmp_path, "32-true")
    for number, (scores, after) in enumerate(zip(served, steps.after, strict=True), 1):
        assert_allclose(scores, v[f"out{number}"], **PLAIN)
        assert_allclose(after["backbone.bn1.weight"], v[f"bn_w_after{number}"], **PLAIN)
        assert_allclose(after["backbone.bn1.bias"], v[f"bn_b_after{number}"], **PLAIN)
    assert only_changed(steps.after[-1], weights) == ["backbone.bn1.weight", "backbone.bn1.bias"]


def test_eata_makes_its_authors_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v = golden("eata/eata_two_steps.npz")
    weights = shallow(v)

    def given(self: EATA) -> None:
        self.fisher.copy_(torch.as_tensor(np.concatenate([v["fisher_w"], v["fisher_b"]])))

    monkeypatch.setattr(EATA, "take_from_source", given)
    margin = float(v["e_margin"]) / float(np.log(5))
    arguments = {"margin": margin, "redundancy": float(v["d_margin"]), "weight": float(v["fisher_alpha"])}
    method = EATA(network(Shallow, weights, "32-true"), **arguments, **sgd(v))
    start = method.start.module.state_dict()
    start["backbone.bn1.weight"].copy_(torch.as_tensor(v["anchor_w"]))
    start["backbone.bn1.bias"].copy_(torch.as_tensor(v["anchor_b"]))
    served, steps = follow(method, [v["x1"], v["x2"]], tmp_path, "32-true")
    for number, (scores, after) in enumerate(zip(served, steps.after, strict=True), 1):
        assert_allclose(scores, v[f"out{number}"], **PLAIN)
        assert_allclose(after["backbone.bn1.weight"], v[f"bn_w_after{number}"], **PLAIN)
        assert_allclose(after["backbone.bn1.bias"], v[f"bn_b_after{number}"], **PLAIN)
        assert int(sum(used.sum() for used in steps.used[:number])) == int(v[f"counts{number}"][1])
    assert_allclose(steps.buffers[1]["mean_probability"], v["probs_after1"], **PLAIN)
    assert_allclose(method.mean_probability, v["probs_after2"], **PLAIN)


def sar(v: Vectors, **changes: Any) -> SAR:
    margin = float(v["margin_e0"]) / float(np.log(5))
    arguments = {"margin": margin, "rho": float(v["rho"]), **sgd(v, float(v["momentum"])), **changes}
    return SAR(network(Deep, deep(v), "64-true"), **arguments)


def test_sar_makes_its_authors_steps_and_none_without_a_sure_row(tmp_path: Path) -> None:
    v = golden("sar/steps.npz")
    method = sar(v, recover_below=0.0)
    served, steps = follow(method, [v["x1"], v["x2"], v["x3"]], tmp_path)
    for number, suffix in enumerate(("", "", "_fixed"), 1):
        assert_allclose(served[number - 1], v[f"served{number}{suffix}"], **EXACT)
    for number, suffix in enumerate(("", "_fixed", "_fixed"), 1):
        after = steps.after[number - 1]
        assert_allclose(after["backbone.bn1.weight"], v[f"after{number}_bn1_w{suffix}"], **EXACT)
        assert_allclose(after["backbone.bn1.bias"], v[f"after{number}_bn1_b{suffix}"], **EXACT)
    sure = v["kept1"].astype(bool)
    assert np.array_equal(steps.used[0].numpy()[sure], v["kept_second1"].astype(bool))
    assert not steps.used[1].any()
    assert_allclose(method.moving_loss, v["ema3_fixed"], **EXACT)
    assert only_changed(steps.after[-1], deep(v)) == ["backbone.bn1.weight", "backbone.bn1.bias"]


class Recover(pl.Callback):
    """Lets the model recover before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, index: int) -> None:
        """It comes before the method's."""
        pl_module.recover_below = float("inf") if index == self.step else 0.0


def test_sar_recovers_with_the_momentum_forgotten(tmp_path: Path) -> None:
    v = golden("sar/recovery.npz")
    method = sar(v, recover_below=0.0)
    served, steps = follow(method, [v["x1"], v["x2"], v["x3"]], tmp_path, callbacks=[Recover(2)])
    assert_allclose(steps.buffers[2]["moving_loss"], v["ema_before_recovery"], **EXACT)
    assert_allclose(served[2], v["served3_fixed"], **EXACT)
    assert_allclose(steps.after[2]["backbone.bn1.weight"], v["after3_bn1_w_fixed"], **EXACT)
    assert int(method.restarts) == 1
    assert_allclose(method.moving_loss, v["ema3_fixed"], **EXACT)


def test_sar_recovers_by_the_rule_of_its_paper() -> None:
    v = golden("sar/ema_rule.npz")
    method = SAR(network(Shallow, zeros(), "64-true"), num_classes=5, recover_below=float(v["reset_constant"]))
    for loss, expected, reset in zip(v["loss_second"], v["ema"], v["reset"], strict=True):
        method.moves = not np.isnan(loss)
        method.follow(torch.tensor(loss))
        assert method.restart_due() == bool(reset)
        if reset:
            method.moving_loss.fill_(-1)
        assert_allclose(float(method.moving_loss) if method.moving_loss >= 0 else np.nan, expected, rtol=1e-6)


def zeros() -> dict[str, Any]:
    return {"head.weight": np.zeros((5, 4)), "head.bias": np.zeros(5)}


def test_deyo_makes_its_authors_steps_and_none_without_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v = golden("deyo/four_batches.npz")

    def given(seed: int, step: int, rows: int, length: int) -> torch.Tensor:
        orders = np.tile(np.arange(length), (rows, 1))
        kept = v[f"kept_entropy{step + 1}"].astype(bool)
        if kept.any():
            orders[kept] = v[f"perm{step + 1}"]
        return torch.as_tensor(orders)

    monkeypatch.setattr(deyo, "random_orders", given)
    shares = {"margin": "margin", "weight_margin": "margin_e0"}
    arguments: dict[str, Any] = {name: float(v[key]) / float(np.log(5)) for name, key in shares.items()}
    arguments |= {"threshold": float(v["plpd_threshold"]), "patches": int(v["patch_len"])}
    method = DeYO(network(Deep, deep(v), "64-true"), **arguments, **sgd(v, float(v["momentum"])))
    served, steps = follow(method, [v[f"x{number}"] for number in range(1, 5)], tmp_path)
    for number, (scores, after) in enumerate(zip(served, steps.after, strict=True), 1):
        assert_allclose(scores, v[f"served{number}"], **EXACT)
        assert_allclose(after["backbone.bn1.weight"], v[f"after{number}_bn1_w"], **EXACT)
        assert_allclose(after["backbone.bn1.bias"], v[f"after{number}_bn1_b"], **EXACT)
        assert int(steps.used[number - 1].sum()) == int(v[f"n_plpd{number}"])
    assert only_changed(steps.after[-1], deep(v)) == ["backbone.bn1.weight", "backbone.bn1.bias"]


# ---- other networks


NETWORKS: dict[str, dict[str, Any]] = {
    "vit": {
        "backbone": "vit_tiny_patch16_224",
        "input_size": 16,
        "backbone_args": {"patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2},
    },
    "convnext": {"backbone": "convnext_atto", "backbone_args": {"depths": [1, 1, 1, 1], "dims": [4, 4, 8, 8]}},
    "resnet_gn": {
        "backbone": "resnet18",
        "backbone_args": {"norm_layer": "groupnorm", "channels": [32, 32, 32, 32], "layers": [1, 1, 1, 1]},
    },
}
ANY: dict[str, dict[str, Any]] = {
    "Tent": {"optimizer": "momentum"},
    "ETA": {"margin": 2.0, "redundancy": 2.0},
    "EATA": {"margin": 2.0, "redundancy": 2.0, "fisher_samples": 4, "fisher_batch": 2},
    "RDumb": {"margin": 2.0, "redundancy": 2.0},
    "SAR": {"margin": 2.0},
    "DeYO": {"margin": 2.0, "threshold": -1.0},
}
OWNERS: dict[str, type[TestTimeMethod]] = {
    one.__name__: one for one in (Tent, ETA, EATA, RDumb, SAR, DeYO, Frozen, BatchNormAdapt)
}


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("of", NETWORKS)
def test_layer_and_group_normalisation_learn(of: str, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = Trained(**NETWORKS[of])
    method = OWNERS[name](made, num_classes=5, lr=0.1, **ANY[name])
    batches = torch.rand(2, 4, 3, 16 if of == "vit" else 32, 16 if of == "vit" else 32)
    before = {key: value.clone() for key, value in method.network.state_dict().items()}
    served, steps = follow(method, list(batches.numpy()), tmp_path, "32-true")
    assert all(bool(used.all()) for used in steps.used)
    assert all(bool(scores.isfinite().all()) for scores in served)
    learnt = {id(parameter) for parameter in norm_parameters(method.network)}
    names = {key for key, parameter in method.network.named_parameters() if id(parameter) in learnt}
    changed = set(only_changed(method.network.state_dict(), before))
    assert changed
    assert changed <= names


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", ["ETA", "EATA", "RDumb", "SAR", "DeYO"])
def test_where_no_row_is_sure_nothing_moves(name: str, rows: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    deep_net = Trained("resnet18", backbone_args={"channels": [8, 8, 8, 8], "layers": [9, 1, 1, 1]})
    for parameter in norm_parameters(deep_net):
        torch.nn.init.ones_(parameter)
    method = OWNERS[name](deep_net, num_classes=5, lr=0.1, margin=0.0)
    before = {key: value.clone() for key, value in method.network.state_dict().items()}
    served, steps = follow(method, list(torch.rand(3, rows, 3, 64, 64).numpy()), tmp_path, "32-true")
    assert not any(bool(used.any()) for used in steps.used)
    assert all(bool(scores.isfinite().all()) for scores in served)
    assert only_changed(method.network.state_dict(), before) == []


def test_sar_and_deyo_leave_the_last_part_alone() -> None:
    for owner in (SAR, DeYO):
        method = owner(Trained(**NETWORKS["vit"]), num_classes=5)
        names = [name for name, one in method.network.named_parameters() if one.requires_grad]
        assert names
        assert not [name for name in names if name.startswith("backbone.norm.")]
        with pytest.raises(
            UserError, match=r"keeps the normalisations of .*norm \(model\.skip\).* give model\.skip \[\]"
        ):
            owner(Trained("dafw.testing.toys.ToyNet"), num_classes=3)


@pytest.mark.parametrize("name", ANY)
def test_a_network_without_normalisation_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} learns scale and shift of normalisations \(model\.learns norm\)"):
        OWNERS[name](Trained("mnist_net"), num_classes=5)


def test_statistics_of_the_batch_need_batch_normalisation() -> None:
    with pytest.raises(UserError, match="BatchNormAdapt needs a network with batch normalisation"):
        BatchNormAdapt(Trained(**NETWORKS["vit"]), num_classes=5)


def test_words_are_checked() -> None:
    for key, word in {"statistics": "batches", "learns": "all"}.items():
        with pytest.raises(UserError, match=f'unknown {key} "{word}"'):
            Tent(Trained("dafw.testing.toys.ToyNet"), num_classes=3, **{key: word})
    with pytest.raises(UserError, match=r"Tent may leave out steps: use trainer\.precision bf16-mixed or 32-true"):
        refused_precision()


def refused_precision() -> None:
    method = Tent(Trained("dafw.testing.toys.ToyNet"), num_classes=3)
    method._trainer = SimpleNamespace(precision="16-mixed", world_size=1, datamodule=None)  # type: ignore[assignment]
    method.setup("fit")


# ---- EATA's Fisher information


def test_fisher_information_is_the_mean_square_of_batch_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {f"backbone.{name}": value.numpy() for name, value in Shallow().state_dict().items()}
    weights |= {"head.weight": np.random.default_rng(0).normal(size=(5, 4)), "head.bias": np.zeros(5)}
    method = EATA(network(Shallow, weights, "64-true"), num_classes=5, fisher_samples=6, fisher_batch=2, lr=1e-3)
    images = torch.rand(6, 3, 6, 6, dtype=torch.float64)
    follow(method, [images.numpy()], tmp_path)
    norm = method.start.module.backbone.bn1.requires_grad_(True)
    batches = Given([images], 5).shuffled_once([Given([images], 5).load("a", "test")], 6, 2, 0)
    expected = []
    with method.layout.temporarily(stream=method.stream_statistics):
        for batch in batches:
            logits = method.start.module(batch.x.double()).logits
            gradients = torch.autograd.grad(
                torch.nn.functional.cross_entropy(logits, logits.argmax(1)), [norm.weight, norm.bias]
            )
            expected.append(torch.cat(gradients) ** 2)
    assert len(expected) == 3
    assert_allclose(method.fisher, torch.stack(expected).mean(0), **EXACT)
    assert float(method.fisher.sum()) > 0


def test_a_control_of_eata_uses_nothing_of_the_source() -> None:
    net = "dafw.testing.toys.ToyNet"
    made = [EATA(Trained(net), num_classes=3, **one) for one in ({}, {"weight": 0.0}, {"learns": "nothing"})]
    assert [method.source_use for method in made] == ["statistics", "nothing", "nothing"]
