"""CMA: its pseudo-labels, its warm-up, what it leaves alone, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_vectors import golden

from dafw.data import Domain
from dafw.data.roles import Split
from dafw.errors import UserError
from dafw.losses.cross_domain import cell_contrast
from dafw.losses.pixel_terms import pixel_entropy
from dafw.methods import CMA
from dafw.methods.segmentation.cma import BINS, class_thresholds
from dafw.nn.alignment import Homography
from dafw.recording import describe
from dafw.testing import case
from dafw.testing.toys import ToyData

ITEM = case(CMA)


def batch_of(item: Any, method: Any) -> Any:
    data = item.make_data()
    data.trainer = None
    data.default_request = method.data_request
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def test_normalised_entropy_is_the_authors() -> None:
    vectors = {name: torch.from_numpy(value) for name, value in golden("cma/normalized_entropy.npz").items()}
    logits = vectors["logits"].requires_grad_()
    found = pixel_entropy(logits) / torch.tensor(float(logits.shape[1])).log()
    torch.testing.assert_close(found, vectors["loss"])
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], vectors["grad"])


def test_the_threshold_is_the_confidence_of_the_surest_pixels() -> None:
    counts = torch.zeros(3, BINS, dtype=torch.float64)
    counts[0, [200, 500, 900]] = torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)
    counts[1, 700] = 4
    assert class_thresholds(counts, 0.1).tolist() == pytest.approx([0.9, 1.0, 1.0])
    assert class_thresholds(counts, 0.4).tolist() == pytest.approx([0.5, 0.7, 1.0])
    assert class_thresholds(counts, 1.0).tolist() == pytest.approx([0.2, 0.7, 1.0])


@pytest.mark.parametrize("sizes", [False, True])
def test_what_changes(sizes: bool, tmp_path: Path) -> None:
    item = case(CMA, data_arguments={"sizes": sizes})
    start: Any = item.make()
    method: Any
    method, _ = item.train(tmp_path)
    before, after = start.state_dict(), method.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith(("network.head", "source_model"))]
    for part in ("network.backbone", "projection", "slow_network", "slow_projection", "queue", "pointer", "thresholds"):
        assert [name for name in moved if name.startswith(part)], part
    assert sizes or int(method.pointer) == 8 * 8 * 4 % 50
    torch.testing.assert_close(method.queue.norm(dim=0), torch.ones(50))


def test_in_the_warm_up_the_contrast_trains_the_projection_alone(tmp_path: Path) -> None:
    method: Any
    method, _ = ITEM.train(tmp_path)
    batch = batch_of(ITEM, method)
    for warmup, trained in ((100, False), (0, True)):
        method.warmup_steps = warmup
        term = method.adapt(method.forward_rows(batch.x, 0), batch)["contrast"]
        first = next(method.network.backbone.parameters())
        (gradient, own) = torch.autograd.grad(term, [first, method.projection[0].weight], allow_unused=True)
        assert own.any()
        assert (gradient is not None and bool(gradient.any())) is trained


def test_pseudo_labels_are_the_source_models_surest(tmp_path: Path) -> None:
    item = case(CMA, data_arguments={"sizes": True})
    method: Any
    method, _ = item.train(tmp_path)
    batch = batch_of(item, method)
    labels = method.labels_of(batch)
    p = method.source_model(batch.x, batch.sizes).logits.softmax(1)
    for row, (height, width) in enumerate(batch.sizes.tolist()):
        assert bool((labels[row, height:] == 255).all())
        assert bool((labels[row, :, width:] == 255).all())
        inside, shares = labels[row, :height, :width], p[row, :, :height, :width]
        kept = inside != 255
        chosen = shares.gather(0, inside.long().clamp_max(2)[None])[0]
        assert bool((chosen >= method.thresholds[inside.long().clamp_max(2)])[kept].all())
    assert 0 < float((labels != 255).float().mean()) < 1


def test_equal_images_under_the_identity_are_most_similar() -> None:
    embedded = torch.randn(2, 4, 6, 6)
    found = cell_contrast(embedded, embedded, torch.ones(2, 1, 6, 6), torch.zeros(4, 1), cells=2, temperature=1.0)
    assert float(found) == pytest.approx(float((1 + torch.tensor(-1.0).exp()).log()))


class Unpaired(ToyData):
    """The toys without references, or with one missing."""

    some = False

    def load(self, name: str, split: Split) -> Domain:
        domain = super().load(name, split)
        if not self.some or domain.references is None:
            return replace(domain, references=None)
        index = domain.references.index.copy()
        index[5] = -1
        return replace(domain, references=replace(domain.references, index=index))


class OneMissing(Unpaired):
    some = True


@pytest.mark.parametrize(("data", "said"), [(Unpaired, "the data has none for b"), (OneMissing, "b/5 of b has none")])
def test_a_missing_reference_is_refused(data: type[ToyData], said: str, tmp_path: Path) -> None:
    served = data("a", "b", kind="segmentation", batch_size=8, steps_per_epoch=2)
    with pytest.raises(UserError, match=said):
        ITEM.train(tmp_path, data=served)


def test_a_fixed_alignment_needs_images_as_they_are_stored(tmp_path: Path) -> None:
    align = describe(Homography([1.0, 0, 0, 0, 1, 0, 0, 0, 1]))
    item = case(CMA, width=4, queue_size=50, align=align)
    with pytest.raises(UserError, match=r"model\.align Homography is for images as they are stored"):
        item.train(tmp_path)
    method, _ = item.train(tmp_path, data=item.make_data(augment=None))
    assert method.steps_done == 8
