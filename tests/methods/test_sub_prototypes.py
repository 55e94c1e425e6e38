"""What sub-prototypes stand for: assignments and purities of hand-made weights, examples of a memory."""

from typing import Any

import numpy as np
import pytest
import torch

from dafw.evaluation.columns import TestColumns
from dafw.methods import MemSPM
from dafw.methods.adaptation.sub_prototypes import Retrieved, examples, memory_numbers, most_used, style_numbers
from dafw.nn.memory import Read
from dafw.testing import case
from dafw.testing.cases import TINY

KEYS = {f"sub_prototype_{name}" for name in ("purity", "baseline", "ami", "kmeans_purity", "kmeans_ami")}


def retrieved(codes: list[int], labels: list[int], query: list[float] | None = None) -> Retrieved:
    n = len(codes)
    embedding = torch.tensor(query or [0.0] * n)[:, None]
    return Retrieved(torch.tensor(codes), torch.ones(n), embedding, torch.tensor(labels), torch.arange(n))


def test_a_sample_is_of_the_sub_prototype_with_the_largest_weight() -> None:
    weights = torch.tensor([[[0.1, 0.2], [0.7, 0.0]], [[0.0, 0.6], [0.4, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    winners, rows = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 5)
    found = Retrieved.of(
        Read(rows, weights, winners, rows + 1, weights.flatten(1)), torch.tensor([4, 5, 6]), torch.arange(3)
    )
    assert found.codes.tolist() == [2, 1, -1]  # item 1's first, item 0's second, none
    torch.testing.assert_close(found.weights, torch.tensor([0.7, 0.6, 0.0]))
    assert found.query.eq(1).all()
    assert found.labels.tolist() == [4, 5, 6]


def test_the_ranks_shares_come_in_the_domains_order() -> None:
    one = retrieved([3, 1, 2], [0, 0, 1])
    columns = {"codes": one.codes, "weights": one.weights, "query": one.query}
    found = TestColumns(columns, one.labels, torch.tensor([2, 0, 1])).of_all_ranks()
    assert (found.columns["codes"].tolist(), found.labels.tolist()) == ([1, 2, 3], [0, 1, 0])


def test_numbers_of_a_known_split() -> None:
    """Class 0 is split by style but for one sample; class 1 not at all; class 2 is in one domain; 3 is unknown."""
    one = retrieved([8, 8, 8, 5, 5, 1, 9, 9], [0, 0, 0, 1, 1, 2, 3, 3], [0, 0.1, 0, 0, 5, 0, 0, 0.1])
    other = retrieved([9, 9, 8, 5, 5, 8, 8], [0, 0, 0, 1, 1, 3, 3], [4, 4.1, 4, 0.1, 5.1, 9, 9.1])
    overall, by_class = style_numbers([one, other], ["a", "b", "c"])
    assert set(overall) == KEYS
    assert set(by_class) == {"a", "b", "unknown"}
    found = {name: (values["samples"], values["groups"]) for name, values in by_class.items()}
    assert found == {"a": (6, 2), "b": (4, 1), "unknown": (4, 2)}
    purity = {name: values["sub_prototype_purity"] for name, values in by_class.items()}
    assert purity == pytest.approx({"a": 5 / 6, "b": 0.5, "unknown": 1.0})
    assert {values["sub_prototype_baseline"] for values in by_class.values()} == {0.5}
    ami = {name: values["sub_prototype_ami"] for name, values in by_class.items()}
    assert 0 < ami["a"] < 1
    assert (ami["b"], ami["unknown"]) == pytest.approx((0.0, 1.0), abs=1e-9)
    for key in ("sub_prototype_purity", "sub_prototype_ami"):
        assert overall[key] == pytest.approx(
            (6 * by_class["a"][key] + 4 * by_class["b"][key] + 4 * by_class["unknown"][key]) / 14
        )
    assert by_class["a"]["sub_prototype_kmeans_purity"] == 1.0  # two clusters of the queries are the styles
    assert by_class["b"]["sub_prototype_kmeans_purity"] == 0.5  # as many clusters as sub-prototypes: one


def test_k_means_of_some_queries_is_of_all() -> None:
    one, other = retrieved([1, 1, 2], [0] * 3, [0.0, 0.1, 0.2]), retrieved([1, 2, 2], [0] * 3, [9.0, 9.1, 9.2])
    overall, _ = style_numbers([one, other], ["a"], most=2)
    assert overall["sub_prototype_purity"] == pytest.approx(4 / 6)
    assert overall["sub_prototype_kmeans_purity"] == 1.0


def test_classes_that_are_in_one_domain_alone_give_no_numbers() -> None:
    assert style_numbers([retrieved([1, 2], [0, 0]), retrieved([1, 2], [1, 1])], ["a", "b"]) == ({}, {})


def test_the_most_used_and_their_strongest_samples() -> None:
    codes, weights = np.array([4, 7, 4, 7, 4, 2, -1, -1, -1, -1]), np.array([1, 2, 9, 5, 3, 1, 1, 1, 1, 1]) / 10
    found = [(code, count, rows.tolist()) for code, count, rows in most_used(codes, weights, 2, 2)]
    assert found == [(4, 3, [2, 4]), (7, 2, [3, 1])]


def test_how_selective_a_memory_is_and_what_it_does_to_clusters() -> None:
    """The queries fall into the classes, what is read does not; unknown (2) is one more label."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    query = torch.eye(3)[labels] + 0.01 * torch.arange(6)[:, None]
    columns = {"entropy": torch.linspace(0, 1, 6), "query": query, "embedding": torch.eye(3)[[0, 1, 2, 0, 1, 2]]}
    halves = [
        TestColumns({name: c[rows] for name, c in columns.items()}, labels[rows], rows)
        for rows in torch.arange(6).chunk(2)
    ]
    found = memory_numbers(halves)
    assert found == pytest.approx(
        {"memory_entropy": 0.5, "memory_query_nmi": 1.0, "memory_nmi": 1 - np.log(2) / np.log(3)}
    )
    assert memory_numbers([]) == {}
    assert memory_numbers(halves, most=3)["memory_query_nmi"] == pytest.approx(1.0)


def served(**changes: Any) -> MemSPM:
    method = case(MemSPM, **{**TINY["MemSPM"], **changes}).make().eval()
    assert isinstance(method, MemSPM)
    return method


@pytest.mark.parametrize("sub_prototypes", [1, 2])
def test_examples_are_the_strongest_of_their_class(sub_prototypes: int) -> None:
    method = served(sub_prototypes=sub_prototypes)
    data = case(MemSPM).make_data(target=["b", "c"])
    panels = examples(method.read, data, method.device, groups=3, each=2)
    assert [panel.name for panel in panels] == ["zero", "one", "two"]
    label = 1
    domains = [data.domain(name, "test") for name in ("b", "c")]
    rows = [(name, i) for name, domain in zip("bc", domains, strict=True) for i in np.flatnonzero(domain.labels == 1)]
    images = torch.stack([domains["bc".index(name)].inputs[i] for name, i in rows])
    weights, codes = method.read(images).weights.flatten(1).max(1)
    assert (panels[label].samples, panels[label].groups) == (len(rows), len(codes.unique()))
    row = panels[label].rows[0]
    code = int(np.bincount(codes.numpy()).argmax())
    assert row.count == int((codes == code).sum())
    assert row.name == (f"{code // 2}.{code % 2}" if sub_prototypes == 2 else f"{code}")
    strongest = int(weights.masked_fill(codes != code, -1).argmax())
    np.testing.assert_allclose(row.images[0], images[strongest].permute(1, 2, 0).numpy() / 255, atol=1e-6)
    assert row.domains[0] == rows[strongest][0]


def test_a_target_of_classes_of_its_own_has_a_panel_for_them() -> None:
    from datamodules.label_sets import LabelSets

    data = case(MemSPM).make_data(label_sets=LabelSets(common=1, source_private=1, target_private=1))  # type: ignore[arg-type]
    method = served(num_classes=2)
    assert [panel.name for panel in examples(method.read, data, method.device)] == ["zero", "unknown"]
