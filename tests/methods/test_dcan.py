"""DCAN and GDCAN against the authors' vectors (tests/golden/dcan), their rates, their paths, what is frozen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms.v2.functional import ten_crop

from dafw.errors import UserError
from dafw.methods import DCAN, GDCAN
from dafw.nn.attention import GatedDomainAttention, domain_attentions
from dafw.nn.norm import DomainBatchNorm
from dafw.optim.schedules import Constant, InverseDecay
from dafw.problems import Outputs
from dafw.testing import Case, contract
from dafw.testing.toys import ToyData, toy_network, toy_trainer

BACKBONE = "dafw.testing.toys.ToySENet"


def make(owner: type[DCAN] = DCAN, *, backbone_lr: float = 1.0, **options: Any) -> DCAN:
    torch.manual_seed(0)
    return owner(toy_network(BACKBONE, backbone_lr=backbone_lr), **{"num_classes": 3, "width": 4, **options})


def train(method: DCAN, folder: Path, **options: Any) -> pl.Trainer:
    trainer = toy_trainer(folder, epochs=1, **options)
    trainer.fit(method, datamodule=ToyData("a", "b", batch_size=8, steps_per_epoch=5))
    return trainer


def images(count: int = 5) -> Tensor:
    data = ToyData("a", "b")
    return torch.stack([data.load("b", "test").inputs[i] for i in range(count)])


class Rates(pl.Callback):
    """Notes the rates of each step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


# ---- the authors' vectors


def close(found: Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-7, atol=1e-9)


def test_terms_and_gradients_against_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: torch.tensor(value) for name, value in golden("dcan/total_loss.npz").items()}
    classes, width = arrays["cls_weight"].shape
    method = DCAN(
        toy_network(BACKBONE),
        num_classes=classes,
        width=len(arrays["r2_bias"]),
        alpha=float(arrays["alpha"]),
        beta=float(arrays["beta"]),
        mode="authors",
    )
    method.network.head = nn.Linear(width, classes)
    method.correct_features.change[0] = nn.Linear(width, len(arrays["r2_bias"]))
    method.correct_features.change[2] = nn.Linear(len(arrays["r2_bias"]), width)
    method.double()
    layers = {"r2": method.correct_features.change[0], "r3": method.correct_features.change[2]}
    layers |= {"c2": method.correct_logits.change[0], "c3": method.correct_logits.change[2], "cls": method.network.head}
    for key, layer in layers.items():
        layer.load_state_dict({part: arrays[f"{key}_{part}"] for part in ("weight", "bias")})
    monkeypatch.setattr(method, "draw_subsets", lambda members: arrays["selected"])
    features = arrays["features"].requires_grad_(True)
    joint, half = Outputs(features, method.network.head(features)), len(features) // 2
    terms = method.terms(joint[:half], joint[half:], arrays["labels"])
    alpha, beta, count = (arrays[name] for name in ("alpha", "beta", "n_classes"))
    close(terms["supervised"], arrays["cls_loss"].numpy())
    close(terms["mmd_features"], (alpha * arrays["mmd_feature"]).numpy())
    close(terms["mmd_scores"], (alpha * arrays["mmd_softmax"]).numpy())
    close(terms["regulariser"], (alpha * arrays["reg_sum_code"] / count).numpy())
    close(terms["entropy"], (beta * arrays["entropy"]).numpy())
    total = torch.stack(list(terms.values())).sum()
    close(total, arrays["total_code"].numpy())
    total.backward()
    assert features.grad is not None
    close(features.grad, arrays["grad_features"].numpy())
    for key, layer in layers.items():
        for part in ("weight", "bias"):
            close(layer.get_parameter(part).grad, arrays[f"grad_{key}_{part}"].numpy())


def test_rates_and_decay_against_the_authors(tmp_path: Path) -> None:
    arrays = golden("dcan/lr.npz")
    backbone, classifier, blocks, decay = arrays["lr_base_cls_residual_wd"][0].tolist()
    options = {"lr": classifier, "backbone_lr": backbone / classifier, "weight_decay": decay, "optimizer": "sgd"}
    watch, method = Rates(), make(**options)
    trainer = train(method, tmp_path, callbacks=[watch])
    groups = trainer.optimizers[0].param_groups
    assert {group["weight_decay"] for group in groups} == {decay}
    assert all(group["nesterov"] for group in groups)
    for step, found in enumerate(watch.rates):
        factor = (1 + step / 5) ** -0.75
        assert found == pytest.approx([blocks * factor, backbone * factor, classifier * factor])
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(trained) == len(set(trained))
    assert set(trained) == {id(parameter) for parameter in method.parameters() if parameter.requires_grad}


# ---- what it starts from, and what does not move


def test_initial_weights(tmp_path: Path) -> None:
    method = make(num_classes=200, ema_decay=0.9)
    head = method.network.head
    assert isinstance(head, nn.Linear)
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.bias.abs().max() == 0
    for block in (method.correct_features, method.correct_logits):
        for layer in (block.change[0], block.change[2]):
            assert layer.weight.std().item() == pytest.approx(0.005, rel=0.4)
            assert (layer.bias == 0.1).all()
    assert method.weight_average is not None
    assert all(
        torch.equal(method.network.state_dict()[k], v) for k, v in method.weight_average.module.state_dict().items()
    )
    assert all(part.layout is method.layout for part in domain_attentions(method))
    assert method.schedule == InverseDecay(alpha=1.0)
    assert make(schedule=Constant()).schedule == Constant()


@pytest.mark.parametrize("norm", [None, "joint"])
def test_frozen_norms_do_not_move(tmp_path: Path, norm: Any) -> None:
    method = make(norm=norm)
    (layer,) = [part for part in method.network.modules() if isinstance(part, DomainBatchNorm)]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    train(method, tmp_path)
    moved = {name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == (set() if norm is None else set(before))


def test_both_squeezes_and_both_blocks_are_trained(tmp_path: Path) -> None:
    method = make(block_lr=1.0)
    before = {name: value.clone() for name, value in method.named_parameters()}
    train(method, tmp_path)
    still = {name for name, value in method.named_parameters() if torch.equal(value, before[name])}
    assert still == {name for name, value in method.named_parameters() if not value.requires_grad}


# ---- paths


def separate(method: DCAN) -> None:
    """Gives the two domains very different squeezes."""
    for part in domain_attentions(method):
        nn.init.normal_(part.source_squeeze.bias, mean=1.0)
        nn.init.normal_(part.target_squeeze.bias, mean=3.0)


def outputs_of(method: DCAN, x: Tensor, source: bool) -> Outputs:
    batch: Any = type("Rows", (), {"x": x, "__len__": lambda self: len(x)})()
    with torch.no_grad():
        return method.evaluate(batch, source)


def test_source_and_target_are_served_by_their_own_paths() -> None:
    method, x = make(), images()
    separate(method)
    method.eval()
    with torch.no_grad():
        source, target = method.forward_rows(x, len(x)), method.forward_rows(x, None)
        assert (source.features - target.features).abs().max() > 1e-6
        z = target.features + method.correct_features.change(target.features)
        y = method.network.head(z)  # type: ignore[misc]
        y = y + method.correct_logits.change(y)
        assert torch.equal(outputs_of(method, x, True).logits, source.logits)
        assert torch.equal(outputs_of(method, x, False).logits, method(x).logits)
        torch.testing.assert_close(method(x).features, z)
        torch.testing.assert_close(method(x).logits, y)


@pytest.mark.parametrize("owner", [DCAN, GDCAN])
def test_in_the_control_the_target_takes_the_sources_path_uncorrected(owner: type[DCAN], tmp_path: Path) -> None:
    method, x = make(owner, **owner.control, weight_decay=0.0), images()
    before = {name: value.clone() for name, value in method.named_parameters()}
    train(method, tmp_path)
    own = {name for name in before if "target_squeeze" in name or name.startswith("correct_")}
    trained = {name for name, value in method.named_parameters() if not torch.equal(value, before[name])}
    assert own
    assert trained
    assert not own & trained  # nothing taught them
    method.eval()
    served = method(x).logits
    assert torch.equal(outputs_of(method, x, source=True).logits, served)
    for part in domain_attentions(method):
        nn.init.normal_(part.target_squeeze.weight, std=10.0)
    nn.init.normal_(method.correct_features.change[2].bias, std=10.0)
    assert torch.equal(method(x).logits, served)


@pytest.mark.parametrize("source", [True, False])
def test_ten_crops(source: bool) -> None:
    method, x = make().eval(), torch.cat([images(), images().flip(3)], 3).repeat(1, 1, 2, 1)  # (5, 3, 12, 12)
    method.ten_crop = None
    crops = [outputs_of(method, crop, source) for crop in ten_crop(x, [6, 6])]
    method.ten_crop = 6
    found = outputs_of(method, x, source)
    summed = torch.stack([crop.logits.softmax(1) for crop in crops]).sum(0)
    torch.testing.assert_close(found.logits.softmax(1), summed / 10)
    torch.testing.assert_close(found.features, torch.stack([crop.features for crop in crops]).mean(0))
    with pytest.raises(UserError, match=r"crops of 6 pixels, and needs larger images than 6x6: set data\.evaluate_wh"):
        outputs_of(method, images(), source)


def test_a_network_without_attention_is_refused() -> None:
    for owner in (DCAN, GDCAN):
        with pytest.raises(UserError, match=r"replaces squeeze-and-excitation modules, and .*ToyNet has none"):
            owner(toy_network(), num_classes=3)


# ---- the random subsets


def test_subsets_are_random_or_the_authors_first_rows() -> None:
    torch.manual_seed(0)
    members = torch.arange(4000) % 5 == torch.arange(5)[:, None]
    random = make(num_classes=5).draw_subsets(members)
    assert not (random & ~members).any()
    assert random.float().mean(1).tolist() == pytest.approx([0.8 / 5] * 5, rel=0.15)
    assert not torch.equal(random[0, ::5], random[1, 1::5])
    first = make(num_classes=5, mode="authors", subset=2.0).draw_subsets(members)
    assert first.float().mean(1).tolist() == pytest.approx([2.0 / 5] * 5, rel=0.15)
    assert (first.int().diff(dim=1) <= 0).all()


def test_the_regulariser_is_zero_where_the_blocks_are_the_identity_and_the_subsets_are_the_classes() -> None:
    method = make(subset=1.0)  # every row of the class
    torch.manual_seed(1)
    source = Outputs(torch.randn(8, 8), torch.randn(8, 3))
    moved = Outputs(source.features + 2, source.logits)
    y = torch.arange(8) % 3
    assert method.regulariser(source, source, y).item() == pytest.approx(0, abs=1e-6)
    assert method.regulariser(source, moved, y).item() > 0.1


# ---- GDCAN


def gates(method: DCAN) -> list[bool]:
    return [bool(part.shared) for part in domain_attentions(method.network) if isinstance(part, GatedDomainAttention)]


@pytest.mark.parametrize(("eta", "shared"), [(2.0, True), (0.0, False)])
def test_the_gates_decision_is_in_the_checkpoint_and_serves(tmp_path: Path, eta: float, shared: bool) -> None:
    method = make(GDCAN, eta=eta)
    for part in domain_attentions(method.network):
        part.shared.fill_(not shared)  # type: ignore[operator]
    trainer = train(method, tmp_path)
    separate(method)
    assert gates(method) == [shared]
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = GDCAN.load(str(tmp_path / "one.ckpt"))
    assert gates(again) == [shared]
    with torch.no_grad():
        same = torch.equal(again.forward_rows(images(), None).logits, again.forward_rows(images(), 5).logits)
    assert same == shared


def test_without_sharing_gdcan_is_dcan(tmp_path: Path) -> None:
    plain, gated = make(), make(GDCAN, eta=0.0)
    for method in (plain, gated):
        train(method, tmp_path)
    for name, value in plain.named_parameters():
        torch.testing.assert_close(gated.get_parameter(name), value)


@pytest.mark.parametrize("owner", ["dcan.DCAN", "gdcan.GDCAN"])
def test_the_other_modes_keep_the_contract_too(tmp_path: Path, owner: str) -> None:
    mode = "authors" if owner == "dcan.DCAN" else "paper"
    arguments = {"width": 4, "mode": mode, "ema_decay": 0.8, "norm": "separate"}
    item = Case(f"dafw.methods.adaptation.{owner}", arguments, network={"backbone": BACKBONE})
    contract.check_no_stall(item, tmp_path)
    contract.check_round_trip(item, tmp_path)
    contract.check_batch_free_inference(item, tmp_path)
