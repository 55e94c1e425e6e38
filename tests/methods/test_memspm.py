"""MemSPM: what stands between its encoder and its head, its reconstruction, and what it shows of the memory."""

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import DCC, MemSPM
from dafw.nn.memory import SubPrototypeMemory
from dafw.nn.network import Network
from dafw.nn.norm import DomainBatchNorm
from dafw.testing import case
from dafw.testing.cases import TINY, differences
from dafw.testing.toys import CLASSES, toy_network


def arguments(**changes: Any) -> dict[str, Any]:
    return {**TINY["MemSPM"], **changes}


def made(**changes: Any) -> MemSPM:
    method = case(MemSPM, **arguments(**changes)).make()
    assert isinstance(method, MemSPM)
    return method


def train(folder: Path, **changes: Any) -> MemSPM:
    """Eight steps in float64, with a clustering before each four."""
    method, _ = case(MemSPM, **arguments(**changes)).train(folder, precision="64-true")
    assert isinstance(method, MemSPM)
    return method


def one_batch(method: MemSPM) -> Batch:
    data = case(MemSPM, **arguments()).make_data()
    data.setup("fit")
    assert method.balanced is not None
    method.has_balanced_rows = False  # no trainer, no balanced rows
    return next(iter(data.train_dataloader()))


def parts(method: MemSPM) -> tuple[SubPrototypeMemory, nn.Module, nn.Module]:
    bottleneck, head, decoder = method.network.bottleneck, method.network.head, method.decoder
    assert isinstance(bottleneck, nn.Sequential)
    assert isinstance(bottleneck[-1], SubPrototypeMemory)
    assert head is not None
    assert decoder is not None
    return bottleneck[-1], head, decoder


def images_of(method: MemSPM, count: int = 6) -> Tensor:
    domain = case(MemSPM).make_data().load("b", "test")
    return torch.stack([domain.inputs[i] for i in range(count)])


def test_the_features_are_what_the_memory_reads() -> None:
    method = made().eval()
    memory, head, _ = parts(method)
    x = images_of(method)
    outputs, z = method(x), method.network.backbone(method.network.normalise(x))
    assert torch.equal(outputs.features, memory.read(z).embedding)
    assert torch.equal(outputs.logits, head(outputs.features))
    assert [type(layer) for layer in head.children()] == [nn.Linear, DomainBatchNorm, nn.Linear]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_terms(tmp_path: Path, reduction: str) -> None:
    """Those of DCC, and the reconstruction of all rows of both domains from the features."""
    method = train(tmp_path, reconstruction=reduction, reconstruction_weight=0.3).train()
    _, _, decoder = parts(method)
    batch = one_batch(method)
    terms = method.losses(batch)
    assert set(terms) >= {"supervised", "reconstruction"}
    n, (c, h, w) = len(batch.x), batch.x.shape[1:]
    assert n > batch.num_source > 0
    features = method.forward_rows(batch.x, batch.num_source).features
    pixels = (batch.x.double() / 255 - 0.5) / 0.5
    squares = (decoder(features, (h, w)) - pixels).square().sum() / n
    expected = 0.3 * (squares / (c * h * w) if reduction == "mean" else squares)
    torch.testing.assert_close(terms["reconstruction"], expected, rtol=1e-6, atol=1e-9)


def test_a_smaller_reconstruction_is_of_averages_over_areas() -> None:
    method = made(reconstruction_size=2)
    _, _, decoder = parts(method)
    batch = one_batch(method)
    joint = method.forward_rows(batch.x, batch.num_source)
    blocks = method.network.normalise(batch.x).unfold(2, 3, 3).unfold(3, 3, 3).mean((-2, -1))  # of 6 x 6 pixels
    expected = method.reconstruction_weight * (decoder(joint.features, (2, 2)) - blocks).square().mean()
    torch.testing.assert_close(method.extra_terms(batch, joint)["reconstruction"], expected)


def test_all_terms_of_dcc_and_one_more_are_trained(tmp_path: Path) -> None:
    method, dcc = train(tmp_path), case(DCC).train(tmp_path, precision="64-true")[0]
    assert method.last_terms.keys() == dcc.last_terms.keys() | {"reconstruction"}


def test_gradients_of_the_reconstruction_reach_memory_encoder_and_decoder() -> None:
    method = made().train()
    memory, _, decoder = parts(method)
    batch = one_batch(method)
    method.extra_terms(batch, method.forward_rows(batch.x, batch.num_source))["reconstruction"].backward()
    for module in (memory, method.network.backbone, decoder):
        gradients = [parameter.grad for parameter in module.parameters()]
        assert all(gradient is not None and gradient.any() for gradient in gradients[-1:])
    assert all(parameter.grad is None for parameter in parts(method)[1].parameters())


def test_a_frozen_encoder_stays_as_it_was(tmp_path: Path) -> None:
    before = {key: value.double() for key, value in made().network.state_dict().items()}
    for frozen in (True, False):
        item = replace(case(MemSPM, **arguments()), network={"frozen": frozen})
        method, _ = item.train(tmp_path, precision="64-true")
        assert isinstance(method, MemSPM)
        moved = differences(before, {key: value.double() for key, value in method.network.state_dict().items()})
        assert "bottleneck.0.memory" in moved
        assert {key for key in moved if key.startswith("head.")} >= {"head.0.weight", "head.2.weight"}
        assert any(key.startswith("backbone.") for key in moved) != frozen
        assert all(parameter.requires_grad != frozen for parameter in method.network.backbone.parameters())
        method.train()
        assert method.network.training
        assert method.network.backbone.training != frozen
        trained = {id(p) for group in method.parameter_groups() for p in group["params"]}
        everything = {id(p) for p in method.parameters()} - {id(p) for p in method.network.backbone.parameters()}
        assert trained >= everything
        assert (trained == everything) == frozen


def test_an_encoder_with_a_bottleneck_learns_that(tmp_path: Path) -> None:
    item = case(MemSPM, **arguments())
    torch.manual_seed(5)
    network = toy_network(bottleneck=5, dropout=0.1, frozen=True)
    method = MemSPM(network, num_classes=CLASSES, **arguments())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    item.train(tmp_path, method=method, epochs=1)
    memory, _, _ = parts(method)
    assert memory.memory.shape == (6, 2, 5)
    moved = differences(before, network.state_dict())
    assert {"bottleneck.0.0.weight", "bottleneck.1.memory"} <= moved.keys()
    assert not any(key.startswith("backbone.") for key in moved)
    x = images_of(method)
    method.eval()
    torch.testing.assert_close(method.read(x).embedding, method(x).features)


def test_pictures(tmp_path: Path) -> None:
    method = train(tmp_path, ema_decay=0.5).eval()
    x = images_of(method)
    found, (items, subs) = method.read(x), method.retrieved(x)
    torch.testing.assert_close(found.embedding, method(x).features)
    assert found.weights.shape == (len(x), 6, 2)
    assert torch.equal(found.weights[torch.arange(len(x)), items, subs], found.weights.flatten(1).max(1).values)
    assert not found.weights.requires_grad
    averaged, trained = method.eval_network.state_dict(), method.network.state_dict()
    assert "bottleneck.0.memory" in differences(averaged, trained)  # type: ignore[arg-type]


STARTED: dict[str, Any] = {"start": "data", "cosine": True, "read_temperature": 0.05}


def test_a_memory_of_data_starts_after_the_warm_up(tmp_path: Path) -> None:
    """Until then the head sees the encoder's output, and the memory keeps its random values."""
    method = made(**STARTED).eval()
    memory, _, _ = parts(method)
    before = memory.memory.detach().double()
    x = images_of(method)
    outputs = method(x)
    assert torch.equal(outputs.features, method.network.encode(x))
    outputs.logits.sum().backward()
    assert memory.memory.grad is not None
    assert not memory.memory.grad.any()

    for name, warmup in (("whole", 8), ("none", 0)):
        method = train(tmp_path / name, warmup_steps=warmup, **STARTED)
        memory = parts(method)[0]
        assert bool(memory.filled) == (warmup < 8)
        assert torch.equal(memory.memory, before) == (warmup == 8)
    assert len(method.prototypes)


def test_the_memory_starts_from_the_encoders_outputs_of_all_samples(tmp_path: Path) -> None:
    for control in (False, True):
        frozen = {"norm": "frozen", "lr": 1e-30, **(MemSPM.control if control else {})}  # nothing moves
        method, _ = case(MemSPM, **arguments(**STARTED, **frozen)).train(tmp_path, epochs=1)
        assert isinstance(method, MemSPM)
        data = case(MemSPM, **arguments()).make_data()
        images = [data.load(name, "train").inputs[i] for name in "ab" for i in range(len(data.load(name, "train")))]
        method.eval()
        z = method.network.backbone(method.network.normalise(torch.stack(images)))
        rows = method.memory.memory.detach().flatten(0, 1)
        assert torch.cdist(rows, z).min(1).values.max() < 1e-4
        assert len(rows.unique(dim=0)) > 6


def test_the_log_has_the_attentions_entropy(tmp_path: Path) -> None:
    for settings, low, high in (({}, 0.9, 1.0), ({"cosine": True, "read_temperature": 1e-4}, 0.0, 0.1)):
        method = train(tmp_path / str(low), **settings)
        assert low <= float(method.memory.attention_entropy or 2) <= high


def test_the_control_has_no_decoder(tmp_path: Path) -> None:
    method = case(MemSPM, **arguments(**MemSPM.control)).train(tmp_path)[0]
    assert isinstance(method, MemSPM)
    assert method.decoder is None
    assert method.last_terms.keys() == {"supervised", "loss"}
    assert method.balanced is None


@pytest.mark.parametrize(
    "ablation",
    [
        {"sub_prototypes": 1},
        {"threshold": 0.05},
        {"reading": "global", "top_k": 8},
        {"cosine": True, "read_temperature": 0.1},
        {"top_k": 1},
        {"head_width": None},
    ],
    ids=str,
)
def test_ablations(tmp_path: Path, ablation: dict[str, Any]) -> None:
    plain, method = train(tmp_path / "plain"), train(tmp_path, **ablation)
    assert all(value.isfinite().all() for value in method.state_dict().values())
    if ablation.keys() & {"threshold", "reading", "cosine", "top_k"}:
        assert differences(plain.network.state_dict(), method.network.state_dict())
        kept = (method.eval().read(images_of(method)).weights > 0).sum((1, 2))
        fixed = "threshold" in ablation
        assert (kept <= 6).all() if fixed else (kept == arguments(**ablation)["top_k"]).all()


def test_it_learns_the_source(tmp_path: Path) -> None:
    """In most of the later epochs: a new clustering can cost a third for an epoch, and rounding decides which."""
    item = case(MemSPM, **arguments(items=20, sub_prototypes=4, top_k=5, head_width=16))
    method, _ = item.train(tmp_path, epochs=20)
    accuracies = [epoch["validators"]["source_accuracy"] for epoch in method.history]
    assert median(accuracies[10:]) > 0.8 > accuracies[0]


def test_only_images_can_be_reconstructed() -> None:
    method = made()
    batch = one_batch(method)
    flat = Batch(batch.x.flatten(1), batch.y, batch.domain, batch.index, batch.num_source)
    with pytest.raises(UserError, match="reconstruction_weight 0"):
        method.extra_terms(flat, method.forward_rows(batch.x, batch.num_source))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"reconstruction": "median"}, "reconstruction"),
        ({"top_k": 7}, "top_k"),
        ({"decoder_widths": [4]}, "widths"),
        ({"reconstruction_size": 0}, "pixels"),
    ],
)
def test_refusals(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        made(**wrong)


def test_clips_vit_from_a_file(tmp_path: Path) -> None:
    """The paper's encoder, one block of it, with the weights of a file, which training leaves as they are."""
    name, small = "vit_base_patch16_clip_224", {"depth": 1, "dynamic_img_size": True}
    torch.manual_seed(0)
    given = timm.create_model(name, pretrained=False, **small).state_dict()
    torch.save(given, tmp_path / "clip.pt")
    network = Network(name, weights=str(tmp_path / "clip.pt"), backbone_args=small, frozen=True)
    assert (network.num_features, network.mean[0]) == (768, timm.get_pretrained_cfg(name).mean[0])  # type: ignore[union-attr]
    item = case(MemSPM, **arguments())
    data = item.make_data(batch_size=4, steps_per_epoch=2)
    for name_of, split in (("a", "train"), ("b", "train"), ("a", "val"), ("b", "val"), ("b", "test")):
        domain = data.load(name_of, split)  # type: ignore[arg-type]
        enlarged = [nn.functional.interpolate(domain.inputs[i][None].float(), 32)[0] for i in range(len(domain))]
        data._loaded[name_of, split] = type(domain)(name_of, [x.to(torch.uint8) for x in enlarged], domain.labels)
    method = MemSPM(network, num_classes=CLASSES, **arguments())
    item.train(tmp_path, method=method, data=data, epochs=1, limit_val_batches=0)
    assert parts(method)[0].memory.shape == (6, 2, 768)
    state = network.backbone.state_dict()
    assert len(state) > 10
    assert all(torch.equal(value, given[key]) for key, value in state.items())
