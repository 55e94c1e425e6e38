"""Values of the published code of LAME, T3A, RoTTA and AdaNPC, see the folders of the same names in tests/golden."""

import numpy as np
import pytest
import torch
from golden_vectors import golden
from torch import Tensor

from dafw.nn.balanced_memory import BalancedMemory, Slots
from dafw.nn.neighbours import NeighbourMemory, votes
from dafw.nn.propagation import Affinity, affinities, propagate
from dafw.nn.supports import Supports

LOOSE = {"rtol": 1e-4, "atol": 1e-6}
EXACT = {"rtol": 1e-7, "atol": 1e-9}


def tensors(path: str) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in golden(path).items()}


# ---- LAME


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["rbf", "knn", "linear"])
def test_lame(kind: Affinity, symmetric: bool) -> None:
    a, name = tensors("lame/affinities.npz"), f"{kind}_sym" if symmetric else kind
    weights = affinities(a["features"], kind, int(a["knn"]), symmetric=symmetric)
    np.testing.assert_allclose(weights, a[f"affinity_{name}"], **EXACT)
    log_q, rounds = propagate(a["logits"], weights)
    np.testing.assert_allclose(log_q.exp(), a[f"q_{name}"], rtol=1e-6)
    assert abs(int(rounds) - int(a[f"rounds_{name}"])) <= 1


@pytest.mark.parametrize("kind", ["rbf", "knn", "linear"])
def test_a_row_alone_and_equal_rows_stay_finite(kind: Affinity) -> None:
    for count in (1, 3):
        features, logits = torch.ones(count, 4), torch.tensor([[2.0, 0.0, -1.0]]).expand(count, 3)
        found, _ = propagate(logits, affinities(features, kind))
        assert bool(found.isfinite().all())
        assert found.argmax(1).tolist() == [0] * count


# ---- T3A


def surest(head: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    logits = x @ head["fc_w"].T + head["fc_b"]
    return logits.argmax(1), -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


@pytest.mark.parametrize("kind", ["filter", "all_code", "all_fixed"])
def test_t3a(kind: str) -> None:
    name, _, form = kind.partition("_")
    a = tensors(f"t3a/{name}.npz")
    form = f"_{form}" if form else ""
    most = None if a["filter_K"] < 0 else int(a["filter_K"])
    memory = Supports(len(a["fc_w"]), most, drop_worst=form == "_code")
    labels, entropies = surest(a, a["fc_w"])
    np.testing.assert_array_equal(labels, a["warmup_label"])
    memory.fill(a["fc_w"], labels, entropies)
    for batch in (1, 2, 3):
        x = a[f"x{batch}"]
        memory.add(x, *surest(a, x))
        np.testing.assert_allclose(x @ memory.centroids().T, a[f"served{batch}{form}"], **EXACT)
        kept = memory.labels < memory.num_classes
        if f"n_support{batch}{form}" in a:
            assert int(kept.sum()) == int(a[f"n_support{batch}{form}"])
        if f"support{batch}{form}" in a:
            np.testing.assert_allclose(memory.features[kept], a[f"support{batch}{form}"], **EXACT)
            np.testing.assert_array_equal(memory.labels[kept], a[f"support_label{batch}{form}"])
            np.testing.assert_allclose(memory.entropies[kept], a[f"support_entropy{batch}{form}"], **EXACT)


# ---- RoTTA


def test_rottas_memory() -> None:
    a = tensors("rotta/memory.npz")
    capacity, classes = int(a["capacity"]), int(a["classes"])
    slots = Slots(capacity, classes, float(a["lambda_t"]), float(a["lambda_u"]))
    for row in range(len(a["label"])):
        slot, left = slots.add(int(a["label"][row]), float(a["entropy"][row]))
        assert (slot is not None) == bool(a["stored"][row])
        assert left == int(a["evicted"][row])
        found, ages = (np.full((classes, capacity), -1) for _ in range(2))
        for label in range(classes):
            own = [one for one in slots.in_order() if slots.labels[one] == label]
            found[label, : len(own)] = [slots.arrivals[one] for one in own]
            ages[label, : len(own)] = [slots.age(one) for one in own]
        np.testing.assert_array_equal(found, a["memory"][row])
        np.testing.assert_array_equal(np.where(found < 0, 0, ages), np.where(found < 0, 0, a["age"][row]))
    np.testing.assert_allclose([slots.age(one) / capacity for one in slots.in_order()], a["final_ages"], **EXACT)


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_rottas_memory_of_images_in_batches_of_any_size(batch: int) -> None:
    a = tensors("rotta/memory.npz")
    capacity, count = int(a["capacity"]), len(a["label"])
    memory = BalancedMemory(capacity, int(a["classes"])).double()
    images = torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1)
    stored, lessons = [], []
    for first in range(0, count, batch):
        part = slice(first, first + batch)
        found, kept = memory.add(images[part], a["label"][part].long(), a["entropy"][part], capacity)
        stored += kept.tolist()
        lessons += [(first + one.row, one) for one in found]
    np.testing.assert_array_equal(stored, a["stored"].bool())
    assert [row for row, _ in lessons] == list(range(capacity - 1, count, capacity))
    for row, lesson in lessons:
        expected = a["memory"][row]
        np.testing.assert_array_equal(lesson.images.flatten(), expected[expected >= 0])
        np.testing.assert_allclose(lesson.ages * capacity, a["age"][row][expected >= 0], **EXACT)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_a_memory_goes_on_from_a_checkpoint(dtype: torch.dtype) -> None:
    a = tensors("rotta/memory.npz")
    images = torch.arange(len(a["label"])).to(dtype).view(-1, 1)
    one, other = (BalancedMemory(int(a["capacity"]), int(a["classes"])).double() for _ in range(2))
    rows = [(images[part], a["label"][part].long(), a["entropy"][part], 3) for part in (slice(0, 20), slice(20, None))]
    one.add(*rows[0])
    other.load_state_dict(one.state_dict())
    found, again = (memory.add(*rows[1]) for memory in (one, other))
    assert other.images.dtype == one.images.dtype == dtype
    assert [lesson.images.tolist() for lesson in found[0]] == [lesson.images.tolist() for lesson in again[0]]
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


# ---- AdaNPC


def test_votes_and_the_memory_of_a_stream() -> None:
    a = tensors("adanpc/stream.npz")
    how = {"neighbours": int(a["K"]), "temperature": float(a["T"])}
    classes, memory = int(a["C"]), NeighbourMemory(a["mem_init"].shape[1])
    memory.features, memory.labels = a["mem_init"], a["lab_init"]  # as stored: its first row is not of length 1
    memory.present = torch.ones_like(memory.labels, dtype=torch.bool)
    for batch in (1, 2):
        x = a[f"x{batch}"]
        found = memory.vote(x, classes, **how)
        np.testing.assert_allclose(found, a[f"p{batch}"], **LOOSE)
        memory.add(x, found.argmax(1), found.softmax(1).amax(1) >= float(a["beta"]))
        assert int(memory.present.sum()) == int(a[f"n{batch}"])
        if batch == 1:
            np.testing.assert_allclose(memory.features[memory.present], a["mem_after1"], **LOOSE)
            np.testing.assert_array_equal(memory.labels[memory.present], a["lab_after1"])


def test_votes_within_a_radius() -> None:
    a = tensors("adanpc/eps_ball.npz")
    found = votes(
        a["x"], a["mem"], a["lab"], int(a["C"]), neighbours=1, temperature=float(a["T"]), radius=float(a["eps"])
    )
    np.testing.assert_allclose(found, a["p"], **LOOSE)


def test_a_queue_forgets_its_oldest() -> None:
    a = tensors("adanpc/fifo.npz")
    memory = NeighbourMemory(a["init"].shape[1], len(a["init"]))
    memory.features.copy_(a["init"])
    memory.add(a["z1"], a["y1"])
    memory.add(a["z2"], a["y2"])
    np.testing.assert_allclose(memory.features, a["memory"], **LOOSE)
    np.testing.assert_array_equal(memory.labels, a["labels"])
    assert int(memory.position) == int(a["index"])


def test_an_empty_queue_and_one_neighbour() -> None:
    memory = NeighbourMemory(2, 4)
    memory.add(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 0]))
    found = memory.vote(torch.tensor([[1.0, 0.1], [0.1, 1.0]]), 3, neighbours=1, temperature=0.1)
    assert found.argmax(1).tolist() == [1, 0]
    torch.testing.assert_close(found, torch.tensor([[1e-5, 1, 1e-5], [1, 1e-5, 1e-5]]))
    memory.add(torch.eye(2).repeat(3, 1), torch.tensor([0, 1, 0, 1, 0, 1]))  # more than it holds
    assert int(memory.present.sum()) == 4
    assert memory.labels.tolist() == [0, 1, 0, 1]
