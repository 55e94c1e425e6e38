"""The memory of sub-prototypes, against reference vectors (tests/golden/memspm) and by its properties."""

from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dafw.errors import UserError
from dafw.nn.memory import Read, SubPrototypeMemory, adaptive_threshold, hard_shrink, normalised_entropy, starting_rows
from dafw.testing.steps import Operations

N, S, D, ROWS = 9, 4, 6, 16
READINGS = ("per_item", "global")
NAMES = pytest.mark.parametrize("name", ["per_item_k1", "per_item_k3", "global_k1", "global_k3"])
VECTORS_EPSILON = 1e-12
"""The epsilon that all vectors were made with. Where a weight is near its threshold, another one changes gradients."""


def close(found: Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-7, atol=1e-9)


def filled(values: NDArray[Any] | Tensor, top_k: int, **options: Any) -> SubPrototypeMemory:
    """A memory with given vectors (N, S, D)."""
    vectors = torch.as_tensor(values)
    module = SubPrototypeMemory(*vectors.shape, top_k, **options).to(vectors.dtype)
    module.load_state_dict({"memory": vectors})
    return module


def made(top_k: int = 3, **options: Any) -> SubPrototypeMemory:
    torch.manual_seed(0)
    return filled(torch.randn(N, S, D, dtype=torch.float64), top_k, **options)


def rows(dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(ROWS, D, dtype=dtype)


def read_with_gradients(module: SubPrototypeMemory, arrays: dict[str, NDArray[Any]]) -> tuple[Read, Tensor, Tensor]:
    z = torch.tensor(arrays["z"], requires_grad=True)
    found = module.read(z)
    (found.embedding * torch.tensor(arrays["cotangent"])).sum().backward()
    assert z.grad is not None
    assert module.memory.grad is not None
    return found, z.grad, module.memory.grad


def test_one_sub_prototype_and_a_fixed_threshold_are_memae() -> None:
    arrays = golden("memspm/memae_read.npz")
    module = filled(arrays["memory"][:, None], 1, threshold=float(arrays["thres"]), epsilon=VECTORS_EPSILON)
    found, of_z, of_memory = read_with_gradients(module, arrays)
    close(found.embedding, arrays["out"])
    close(found.weights[..., 0], arrays["att"])
    close(of_z, arrays["grad_z"])
    close(of_memory[:, 0], arrays["grad_memory"])


@NAMES
def test_reading_against_the_vectors(name: str) -> None:
    arrays = golden(f"memspm/read_{name}.npz")
    reading = name.rpartition("_")[0]
    module = filled(arrays["memory"], int(arrays["k"]), reading=reading, epsilon=VECTORS_EPSILON)
    found, of_z, of_memory = read_with_gradients(module, arrays)
    close(found.embedding, arrays["z_hat"])
    if reading == "per_item":
        assert np.array_equal(found.winners.numpy(), arrays["winner"])
        close(found.weights.sum(2), arrays["att_sparse"])
        close(found.weights.gather(2, found.winners[..., None])[..., 0], arrays["att_sparse"])
    else:
        close(found.weights.flatten(1), arrays["att_sparse"])
    close(of_z, arrays["grad_z"])
    close(of_memory, arrays["grad_memory"])
    attention = torch.tensor(arrays["att"])
    close(module.attend(torch.tensor(arrays["z"]), module.memory)[0], arrays["att"])
    close(adaptive_threshold(attention, module.top_k), arrays["thr"])
    kept = hard_shrink(attention, torch.tensor(arrays["thr"]), VECTORS_EPSILON)
    close(kept / kept.sum(1, keepdim=True), arrays["att_sparse"])


def read_without_epsilon(
    z: Tensor, memory: Tensor, reading: str, top_k: int, threshold: float | None
) -> tuple[Tensor, Tensor]:
    """The embeddings (n, D) and weights (n, N S) of a reading whose shrinkage only selects."""
    similarities = torch.einsum("nd,isd->nis", z, memory)
    if reading == "per_item":
        winner = F.one_hot(similarities.argmax(2), memory.shape[1])  # (n, N, S)
        attention = ((similarities * winner).sum(2).softmax(1)[..., None] * winner).flatten(1)
    else:
        attention = similarities.flatten(1).softmax(1)
    limit = attention.detach().sort(1, descending=True).values[:, [top_k]] if threshold is None else threshold
    kept = attention * (attention.detach() > limit)
    weights = kept / kept.sum(1, keepdim=True).clamp_min(1e-12)
    return weights @ memory.flatten(0, 1), weights


def check_without_epsilon(arrays: dict[str, NDArray[Any]], reading: str, top_k: int, threshold: float | None) -> None:
    memory = arrays["memory"] if arrays["memory"].ndim == 3 else arrays["memory"][:, None]
    options: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    found, of_z, of_memory = read_with_gradients(filled(memory, top_k, reading=reading, **options), arrays)
    z, vectors = (torch.tensor(values, requires_grad=True) for values in (arrays["z"], memory))
    embedding, weights = read_without_epsilon(z, vectors, reading, top_k, threshold)
    (embedding * torch.tensor(arrays["cotangent"])).sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert vectors.grad is not None
    for one, other in ((found.embedding, embedding), (found.weights.flatten(1), weights)):
        close(one, other.detach().numpy())
    close(of_z, z.grad.numpy())
    close(of_memory, vectors.grad.numpy())


@NAMES
def test_reading_the_vectors_without_epsilon(name: str) -> None:
    """The vectors are made with an epsilon, so their results are no reference here; a formula of their inputs is."""
    arrays = golden(f"memspm/read_{name}.npz")
    check_without_epsilon(arrays, name.rpartition("_")[0], int(arrays["k"]), None)


def test_reading_memaes_vectors_without_epsilon() -> None:
    arrays = golden("memspm/memae_read.npz")
    check_without_epsilon(arrays, "per_item", 1, float(arrays["thres"]))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("top_k", [1, 3, N])
def test_sparse_weights(reading: str, top_k: int, normalise: bool) -> None:
    module = made(top_k, reading=reading, normalise=normalise, temperature=0.5)
    found = module.read(rows())
    weights = found.weights.flatten(1)
    torch.testing.assert_close(weights.sum(1), torch.ones(ROWS, dtype=torch.float64))
    assert ((weights > 0).sum(1) == top_k).all()
    assert (weights >= 0).all()
    # in proportion to the weights before, on the largest of them
    before, winners = module.attend(rows(), module.memory)
    assert torch.equal(winners, found.winners)
    sparse = found.weights.sum(2) if reading == "per_item" else weights
    largest = before.topk(top_k, 1)
    torch.testing.assert_close(sparse.gather(1, largest.indices), largest.values / largest.values.sum(1, keepdim=True))
    if reading == "per_item":
        others = found.weights.scatter(2, winners[..., None], 0.0)
        assert not others.any()
    items, subs = found.strongest()
    assert torch.equal(found.weights[torch.arange(ROWS), items, subs], weights.max(1).values)
    assert torch.equal(found.winners[torch.arange(ROWS), items], subs)


def test_similarities() -> None:
    z, plain = rows(), made()
    plain_read = plain.read(z)
    assert torch.equal(plain_read.winners, torch.einsum("nd,isd->nis", z, plain.memory).argmax(2))
    scaled = filled(plain.memory.detach(), 3, normalise=True, temperature=0.1)
    cosines = torch.einsum(
        "nd,isd->nis", z / z.norm(dim=1, keepdim=True), plain.memory / plain.memory.norm(dim=2)[..., None]
    )
    expected = (cosines.max(2).values / 0.1).softmax(1)
    torch.testing.assert_close(scaled.attend(z, scaled.memory)[0], expected)
    torch.testing.assert_close(scaled.read(7 * z).embedding, scaled.read(z).embedding)
    assert (plain.read(7 * z).embedding - plain_read.embedding).abs().max() > 1e-3


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("threshold", ["adaptive", 0.0])
def test_equal_vectors_give_that_vector(reading: str, threshold: Any) -> None:
    vector = torch.linspace(-1, 1, D, dtype=torch.float64)
    module = filled(vector.expand(N, S, D).clone(), 2, reading=reading, threshold=threshold)
    found = module.read(rows())
    torch.testing.assert_close(found.embedding, vector.expand(ROWS, D))
    torch.testing.assert_close(found.weights.sum((1, 2)), torch.ones(ROWS, dtype=torch.float64))
    found.embedding.sum().backward()
    assert module.memory.grad is not None
    assert module.memory.grad.isfinite().all()


@pytest.mark.parametrize("epsilon", [0.0, 1e-12])
@pytest.mark.parametrize("reading", READINGS)
def test_a_fixed_threshold_that_nothing_passes_gives_zeros(reading: str, epsilon: float) -> None:
    module, z = made(reading=reading, threshold=0.999, epsilon=epsilon), rows().requires_grad_()
    found = module.read(z)
    passed = (module.attend(z, module.memory)[0] > 0.999).any(1)
    assert not passed.all()
    assert not found.embedding[~passed].any()
    found.embedding.sum().backward()
    assert z.grad is not None
    assert module.memory.grad is not None
    assert z.grad.isfinite().all()
    assert module.memory.grad.isfinite().all()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("threshold", ["adaptive", 0.05])
def test_order_of_items_and_of_sub_prototypes_does_not_matter(reading: str, threshold: Any) -> None:
    module, z = made(reading=reading, threshold=threshold), rows()
    items, subs = torch.randperm(N), torch.randperm(S)
    shuffled = filled(module.memory.detach()[items][:, subs], 3, reading=reading, threshold=threshold)
    torch.testing.assert_close(shuffled.read(z).embedding, module.read(z).embedding, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shuffled.read(z).weights, module.read(z).weights[:, items][:, :, subs])


@pytest.mark.parametrize("reading", READINGS)
def test_what_is_not_retrieved_has_no_gradient(reading: str) -> None:
    """The softmax's denominator cancels in the weights that are scaled to sum to 1."""
    module = made(reading=reading)
    found = module.read(rows())
    found.embedding.square().sum().backward()
    assert module.memory.grad is not None
    retrieved = (found.weights > 0).any(0)
    assert retrieved.any()
    assert not retrieved.all()
    assert module.memory.grad[~retrieved].abs().max() < 1e-14
    assert module.memory.grad[retrieved].abs().amax(1).min() > 1e-9


def test_gradients_are_those_of_finite_differences() -> None:
    for reading in READINGS:
        module = made(reading=reading, temperature=0.7)
        z = rows()[:4].requires_grad_()
        assert torch.autograd.gradcheck(lambda x, module=module: module(x), z)


def test_shrinkage() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
    limit = torch.tensor([[0.2]], dtype=torch.float64)
    assert torch.equal(hard_shrink(weights, limit), torch.tensor([[0.5, 0.3, 0.0, 0.0]], dtype=torch.float64))
    soft = hard_shrink(weights, limit, 1e-12)
    assert (soft - hard_shrink(weights, limit)).abs().max() < 1e-9
    written = weights * (weights - limit).clamp_min(0) / ((weights - limit).abs() + 1e-3)
    torch.testing.assert_close(hard_shrink(weights, limit, 1e-3), written)


def test_ties_at_the_threshold_go() -> None:
    """Weights 0.4, 0.2, 0.2, 0.2 with top_k 2: one is left."""
    vectors = torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64).log()[:, None, None]
    found = filled(vectors, 2).read(torch.ones(1, 1, dtype=torch.float64))
    assert found.weights.flatten().tolist() == [1.0, 0.0, 0.0, 0.0]


def test_initial_values() -> None:
    torch.manual_seed(0)
    values = SubPrototypeMemory(50, 8, 16, 5).memory.detach()
    assert values.abs().max() <= 0.25
    assert abs(float(values.mean())) < 0.01
    assert abs(float(values.std()) - 0.25 / 3**0.5) < 0.01


def test_16_bits_are_read_in_32() -> None:
    module = made().float()
    full = module.read(rows(torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module.read(rows(torch.float32))
        low = module.read(rows(torch.bfloat16))
    assert torch.equal(found.embedding, full.embedding)
    assert low.embedding.dtype == torch.float32
    assert ((low.weights > 0).sum((1, 2)) == 3).all()
    assert module.bfloat16().read(rows(torch.bfloat16)).embedding.isfinite().all()


@pytest.mark.parametrize("threshold", ["adaptive", 0.05])
@pytest.mark.parametrize("reading", READINGS)
def test_nothing_is_read_from_the_device(reading: str, threshold: Any) -> None:
    module = made(reading=reading, threshold=threshold)
    with Operations() as operations:
        found = module.read(rows().requires_grad_())
        found.strongest()
        found.embedding.sum().backward()
    assert not operations.host_reads


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"items": 0}, "of 1 or more: 0, 2, 4"),
        ({"top_k": 0}, "at most the 3 weights of a per_item reading, not 0"),
        ({"top_k": 4}, "at most the 3 weights of a per_item reading, not 4"),
        ({"top_k": 7, "reading": "global"}, "at most the 6 weights of a global reading, not 7"),
        ({"reading": "globl"}, "reading"),
        ({"threshold": "adaptiv"}, "threshold"),
        ({"threshold": 1.0}, "below 1, not 1.0"),
        ({"temperature": 0.0}, "temperature is positive"),
    ],
)
def test_refusals(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        SubPrototypeMemory(**{"items": 3, "sub_prototypes": 2, "dim": 4, "top_k": 1, **arguments})


def test_what_a_memory_starts_from() -> None:
    """Items are clusters of directions, their sub-prototypes embeddings of the cluster, from the centre outwards."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(4)[torch.arange(40) % 4]
    rows = (directions + 0.05 * torch.randn(40, 4, generator=generator)) * (1 + torch.arange(40)[:, None])
    found = starting_rows(rows, 4, 3)
    assert found.shape == (4, 3, 4)
    axes = found.argmax(2)
    assert sorted(axes[:, 0].tolist()) == [0, 1, 2, 3]
    assert (axes == axes[:, :1]).all()
    assert all((rows == row).all(1).any() for row in found.flatten(0, 1))
    assert torch.equal(found, starting_rows(rows, 4, 3))
    few = starting_rows(rows[:2], 3, 2)  # fewer rows than items
    assert all((rows[:2] == row).all(1).any() for row in few.flatten(0, 1))
    equal = starting_rows(rows[[0, 1, 0, 1, 0, 1, 1, 0]], 5, 2)  # two images, each several times
    assert all((rows[:2] == row).all(1).any() for row in equal.flatten(0, 1))
    assert {tuple(row) for row in equal.flatten(0, 1).tolist()} == {tuple(row) for row in rows[:2].tolist()}


def test_a_memory_of_data_gives_its_input_until_it_is_filled() -> None:
    memory = SubPrototypeMemory(3, 2, 4, 1, start="data")
    z = torch.randn(5, 4)
    assert torch.equal(memory(z), z)
    memory.fill(z[:1].expand(3, 2, 4))
    torch.testing.assert_close(memory(z), z[:1].expand(5, 4))
    loaded = SubPrototypeMemory(3, 2, 4, 1, start="data")
    loaded.load_state_dict(memory.state_dict())
    assert torch.equal(loaded(z), memory(z))
    assert SubPrototypeMemory(3, 2, 4, 1).state_dict().keys() == {"memory"}
    with pytest.raises(UserError, match="start"):
        SubPrototypeMemory(3, 2, 4, 1, start="kmeans")  # type: ignore[arg-type]


def test_entropy_of_the_attention() -> None:
    memory = SubPrototypeMemory(4, 1, 2, 1, normalise=True)
    with torch.no_grad():
        memory.memory.copy_(torch.ones(4, 1, 2))
    torch.testing.assert_close(memory.read(torch.randn(3, 2)).entropy(), torch.ones(3))
    torch.testing.assert_close(normalised_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])), torch.tensor([0.0, 1.0]))
    assert normalised_entropy(torch.ones(2, 1)).tolist() == [0.0, 0.0]
