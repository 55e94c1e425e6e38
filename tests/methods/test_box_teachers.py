"""MeanTeacher, SourceFreeTeacher and WSCoL: who teaches what, in which frame, and what happens when nobody does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.geometry import move_boxes
from dafw.errors import CollapsedTeacher, UserError
from dafw.methods import MeanTeacher, Method, SourceFreeTeacher, SourceOnly, WSCoL
from dafw.methods.detection.box_teacher import Masked
from dafw.methods.detection.lessons import soft_positions
from dafw.nn.detector import Detector
from dafw.testing import case, contract
from dafw.testing.cases import BATCH, EPOCHS, STEPS_PER_EPOCH, TINY, differences

CRITIC = {"class_path": "dafw.methods.detection.mean_teacher.ImageCritic", "init_args": {"width": 4}}
MASKED = {"class_path": "dafw.methods.detection.box_teacher.Masked", "init_args": {"block": 8}}
TEACHING: dict[str, Any] = {"threshold": 0.2, "decay": 0.8, "burn_in": 0.0}


def trained(folder: Path, method: type[Method] = MeanTeacher, **arguments: Any) -> tuple[Any, Batch]:
    """A method after an epoch, and a batch for it."""
    item = case(method, **{**(TEACHING if method is MeanTeacher else TINY[method.__name__]), **arguments})
    data = item.make_data()
    model, _ = item.train(folder, data=data, epochs=1, limit_val_batches=0)
    model.train()
    model.zero_grad()
    return model, next(iter(data.train_dataloader()))


class Students(pl.Callback):
    """Keeps the student's weights before training and after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._keep(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self._keep(pl_module)

    def _keep(self, method: Any) -> None:
        state = method.network.state_dict()
        self.seen.append({name: v.clone() for name, v in state.items() if v.is_floating_point()})


def test_without_weight_it_is_supervised_training_with_an_average(tmp_path: Path) -> None:
    control = case(MeanTeacher, **{**TEACHING, "weight": 0.0, "source_views": "weak"})
    plain = case(SourceOnly, kind="detection", norm="separate", forward_target=True, ema_decay=0.8)
    ours, theirs = (item.train(tmp_path, limit_val_batches=0)[0] for item in (control, plain))
    assert not differences(*(dict(one.network.named_parameters()) for one in (ours, theirs)))
    averages = ours.teacher.module, theirs.weight_average.module  # type: ignore[union-attr]
    assert not differences(*(dict(one.named_parameters()) for one in averages))  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("start", ["student", "average"])
def test_the_teacher_is_the_average_that_it_says(start: str, tmp_path: Path) -> None:
    students, burnt = Students(), 3
    item = case(MeanTeacher, threshold=0.2, decay=0.7, interval=2, burn_in=burnt / 8, start=start)
    model, _ = item.train(tmp_path, callbacks=[students], precision="64-true", limit_val_batches=0)
    assert isinstance(model, MeanTeacher)
    assert STEPS_PER_EPOCH * EPOCHS == 8
    expected = dict(students.seen[0])
    for step, student in enumerate(students.seen[1:], 1):
        if step == burnt + 1 and start == "student":
            expected = dict(students.seen[burnt])
        if step % 2 == 0:
            expected = {name: 0.7 * value + 0.3 * student[name] for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(model.teacher.module.state_dict()[name], value)
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    assert model.eval_network is model.teacher.module


def test_the_student_starts_as_the_average_after_the_burn_in(tmp_path: Path) -> None:
    item = case(MeanTeacher, threshold=0.2, decay=0.5, burn_in=3 / 8, start="average")
    model: Any = item.make()
    equal: list[bool] = []

    def rows(batch: Batch, taught: bool) -> Any:
        equal.append(not differences(*(one.state_dict() for one in (model.network, model.teacher.module))))
        return MeanTeacher.rows(model, batch, taught)

    model.rows = rows
    item.train(tmp_path, method=model, limit_val_batches=0)
    assert equal == [True, False, False, True, False, False, False, False]


@pytest.mark.parametrize("method", [MeanTeacher, SourceFreeTeacher])
def test_at_one_no_threshold_lets_the_teacher_speak(method: type[Method], tmp_path: Path) -> None:
    model, batch = trained(tmp_path, method, threshold=1.0)
    lesson = model.teach(batch)
    assert not lesson.weights.any()
    terms = model.losses(batch)
    assert terms["pseudo_class"] == terms["pseudo_objectness"] == 0
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in model.network.parameters()), "a rank alone has no gradient for a parameter"


def test_without_pseudo_labels_the_student_does_not_see_the_teacher(tmp_path: Path) -> None:
    item = case(MeanTeacher, **{**TEACHING, "threshold": 1.0})
    students = [item.train(tmp_path, method=item.make(decay=decay), limit_val_batches=0)[0] for decay in (0.0, 0.99)]
    assert not differences(*(one.network.state_dict() for one in students))


def test_pseudo_boxes_come_from_the_weak_views_and_lie_in_the_strong_ones(tmp_path: Path) -> None:
    model, batch = trained(tmp_path)
    lesson, target = model.teach(batch), batch.x[BATCH:]
    found = model.teacher.module.detections(model.forward_rows(target, None, model.teacher.module))
    maps, mirrored = batch.maps["strong"][BATCH:], 0
    for one, label, affine in zip(found, lesson.labels, maps, strict=True):
        kept = one["scores"] > 0.2
        torch.testing.assert_close(label["scores"], one["scores"][kept])
        boxes = one["boxes"][kept]
        if affine[0, 0] < 0:
            boxes, mirrored = (
                torch.stack([32 - boxes[:, 2], boxes[:, 1], 32 - boxes[:, 0], boxes[:, 3]], 1),
                mirrored + 1,
            )
        torch.testing.assert_close(label["boxes"], boxes)
    assert 0 < mirrored < BATCH
    assert not lesson.weights.requires_grad


def test_an_image_without_a_pseudo_label_is_skipped(tmp_path: Path) -> None:
    model, batch = trained(tmp_path)
    model.layout.clock = (0, 3)  # as within a step, so that each call draws the same regions
    lesson = model.teach(batch)
    x, sizes = model.strong_target(batch)
    target = model.forward_rows(x, 0, sizes=sizes)
    some = lesson._replace(weights=torch.tensor([1.0] + [0.0] * (BATCH - 1)))
    rows = model.network.row_losses(target, lesson.labels)
    terms = model.hard_terms(target, some)
    assert set(terms) == {"pseudo_class", "pseudo_objectness"}
    torch.testing.assert_close(terms["pseudo_class"], model.weight * rows["class"][0] / BATCH)


def test_places_are_learnt_from_pseudo_labels_if_asked(tmp_path: Path) -> None:
    for labels, name in (("hard", "pseudo_box"), ("soft", "soft_box")):
        with_places, batch = trained(tmp_path, labels=labels, pseudo_boxes=True)
        without, _ = trained(tmp_path, labels=labels)
        assert name in with_places.losses(batch)
        assert name not in without.losses(batch)


def test_labels_count_by_the_students_certainty_if_asked(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, masked=MASKED, label_weights="certainty")
    lesson, (x, sizes) = model.teach(batch), model.strong_target(batch)
    target = replace(model.forward_rows(x, None, sizes=sizes), seeds=list(range(BATCH)))
    rows = model.network.row_losses(target, lesson.labels, certain=True)
    found = model.hard_terms(target, lesson)
    assert set(found) == {"pseudo_class", "pseudo_objectness"}
    for name in ("class", "objectness"):
        torch.testing.assert_close(found[f"pseudo_{name}"], model.weight * (lesson.weights * rows[name]).mean())
    alike = model.network.row_losses(target, lesson.labels)
    assert (rows["class"] < alike["class"]).all()


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, labels="soft", pseudo_boxes=True, norm="frozen")
    model.teacher.copy_from()
    batch.views["strong"], batch.maps["strong"] = batch.x, torch.eye(2, 3).expand(len(batch), 2, 3)
    lesson = model.teach(batch)
    terms = model.lesson_terms(model.forward_rows(batch.x[BATCH:], 0), lesson)
    assert set(terms) == {"soft_class", "soft_objectness", "soft_box"}
    torch.testing.assert_close(terms["soft_box"], torch.tensor(0.0), atol=1e-4, rtol=0)
    sum(terms.values()).backward()
    largest = max(float(p.grad.abs().max()) for n, p in model.network.named_parameters() if "bbox" not in n)
    assert largest < 1e-4


def test_scores_of_positions_follow_a_mirrored_view(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, labels="soft")
    lesson = model.teach(batch)
    mirror = torch.tensor([[-1.0, 0, 32], [0, 1, 0]]).expand(BATCH, 2, 3)
    outputs = lesson.outputs
    turned = {name: [one.flip(3).requires_grad_() for one in maps] for name, maps in outputs.maps.items()}
    target = type(outputs)(outputs.levels, turned, outputs.anchors, outputs.canvas)
    soft_positions(target, lesson._replace(maps=mirror)).backward()  # type: ignore[no-untyped-call]
    for one in turned["objectness"]:
        assert one.grad is not None
        torch.testing.assert_close(one.grad, torch.zeros_like(one.grad), atol=1e-6, rtol=0)


def test_thresholds_of_single_classes(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, class_thresholds={"one": 1.0})
    labels = torch.cat([one["labels"] for one in model.teach(batch).labels])
    assert len(labels)
    assert 1 not in labels
    with pytest.raises(UserError, match=r'class in model\.class_thresholds "onne": did you mean "one"'):
        trained(tmp_path, class_thresholds={"onne": 0.5})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"threshold": 1.2}, "model.threshold must be from 0 to 1, not 1.2"),
        ({"class_thresholds": {"one": -0.1}}, "model.class_thresholds must be from 0 to 1, not -0.1"),
        ({"labels": "smooth"}, 'unknown model.labels "smooth"'),
        ({"norm": "domain_specific"}, "model.burn_in 0"),
        ({"label_weights": "sure"}, 'unknown model.label_weights "sure"'),
        ({"label_weights": "certainty", "labels": "soft"}, "model.labels soft has none: leave it out"),
        (
            {"network": Detector("fcos", proposals_in_test=20), "label_weights": "certainty"},
            "this detector has no regions of its own: leave it out",
        ),
        (
            {"network": Detector("fcos", proposals_in_test=20), "labels": "soft", "pseudo_boxes": True},
            "model.network.arch to fasterrcnn",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], said: str) -> None:
    network = arguments.pop("network", None)
    with pytest.raises(UserError, match=said):
        case(MeanTeacher, network=network, **arguments).make()


def test_a_burn_in_that_leaves_no_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.burn_in 0.95 leaves none of the 8 steps to the teacher: lower it"):
        case(MeanTeacher, burn_in=0.95).train(tmp_path, limit_val_batches=0)


def test_blocks_of_the_target_are_hidden_from_the_student_alone(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, masked=Masked(0.5, 8))
    rows, strong = model.rows(batch, True), batch.views["strong"]
    assert torch.equal(rows.x[:BATCH], strong[:BATCH])
    hidden = (rows.x[BATCH:] != strong[BATCH:]).any(1)
    assert 0.2 < hidden.float().mean() < 0.8
    assert (rows.x[BATCH:].permute(0, 2, 3, 1)[hidden] == 128).all()  # the network's mean is one half
    again = model.rows(batch, True)
    assert torch.equal(rows.x, again.x)


@pytest.mark.parametrize(("views", "count"), [("weak", BATCH), ("strong", BATCH), ("both", 2 * BATCH)])
def test_views_of_the_source_come_with_their_boxes(views: str, count: int, tmp_path: Path) -> None:
    model, batch = trained(tmp_path, source_views=views)
    rows = model.rows(batch, True)
    assert (rows.num_source, len(rows.y), len(rows.x)) == (count, count, count + BATCH)
    last, y = rows.y[-BATCH:], batch.y
    for i in range(BATCH):
        expected = y[i]["boxes"]
        if views != "weak":
            expected = move_boxes(expected, batch.maps["strong"][i])
        torch.testing.assert_close(last[i]["boxes"], expected)


def test_the_teacher_has_no_graph(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, labels="both", critic=CRITIC)
    terms = model.losses(batch)
    sum(terms.values()).backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.critic.parameters())


def test_the_critics_gradient_is_reversed(tmp_path: Path) -> None:
    contract.check_reversed_gradients(case(MeanTeacher, **TEACHING, critic=CRITIC), tmp_path)


def test_what_is_served_is_what_another_method_starts_from(tmp_path: Path) -> None:
    item = case(MeanTeacher, **TEACHING)
    model, trainer = item.train(tmp_path, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "step=8.ckpt")
    again = case(SourceFreeTeacher, checkpoint=str(tmp_path / "step=8.ckpt")).make()
    assert isinstance(model, MeanTeacher)
    assert differences(model.network.state_dict(), again.network.state_dict())
    assert not differences(model.teacher.module.state_dict(), again.network.state_dict())


@pytest.mark.parametrize("method", [MeanTeacher, WSCoL])
def test_padded_images_of_several_sizes_and_without_boxes_are_finite(method: type[Method], tmp_path: Path) -> None:
    arguments = {"critic": CRITIC, "source_views": "both"} if method is MeanTeacher else {}
    model, batch = trained(tmp_path, method, labels="both", pseudo_boxes=True, masked=Masked(0.5, 8), **arguments)
    count, first = len(batch), batch.num_source
    sides = torch.tensor([[32, 32], [20, 31], [9, 26], [27, 12]])
    padded = torch.zeros(count, 3, 44, 36, dtype=torch.uint8)
    padded[:, :, :32, :32] = batch.views["strong"]
    half = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.5, 0.0]]).expand(count, 2, 3)
    y = [{name: value[:number] for name, value in one.items()} for number, one in enumerate(batch.y)]
    changed = replace(
        batch,
        y=y,
        sizes=sides.repeat(count, 1)[:count],
        views={"strong": padded},
        view_sizes={"strong": sides.flip(0).repeat(count, 1)[:count]},
        maps={"strong": half},
    )
    one = replace(
        changed,
        x=batch.x[first:][:1],
        y=[],
        num_source=0,
        sizes=None,
        views={"strong": padded[:1]},
        view_sizes={},
        maps={"strong": half[:1]},
    )
    for given in [changed] if method is MeanTeacher else [changed.unlabelled(), one]:
        model.zero_grad()
        terms = model.losses(given)
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values()), terms
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# ---- collapse


def test_a_teacher_that_finds_nothing_any_more_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = trained(tmp_path, SourceFreeTeacher)
    model.first_count.fill_(12.0)
    model.recent_count.fill_(1.1)
    model.collapse = "stop"
    with pytest.raises(CollapsedTeacher, match=r"1.1 pseudo-labels an image at step 4, and 12 in the first 3 steps"):
        model.flush()
    model.collapse = "warn"
    model.flush()
    model.flush()
    assert capsys.readouterr().err.count("the teacher has collapsed") == 1
    model._warned = False
    model.recent_count.fill_(1.3)
    model.flush()
    assert "collapsed" not in capsys.readouterr().err


def test_a_threshold_that_nothing_passes_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(CollapsedTeacher, match=r"no object above the threshold in the first 3 steps.*model.threshold"):
        trained(tmp_path, SourceFreeTeacher, threshold=1.0, collapse="stop")


def test_the_counts_are_means_over_the_window(tmp_path: Path) -> None:
    item = case(SourceFreeTeacher)
    model: Any = item.make()
    seen: list[float] = []

    def teach(batch: Batch) -> Any:
        lesson = SourceFreeTeacher.teach(model, batch)
        seen.append(sum(len(one["boxes"]) for one in lesson.labels) / BATCH)
        return lesson

    model.teach = teach
    item.train(tmp_path, method=model, limit_val_batches=0)
    first = sum(seen[:3]) / 3
    recent = first
    for value in seen[3:]:
        recent += (value - recent) / 3
    assert (float(model.first_count), float(model.recent_count)) == pytest.approx((first, recent))


# ---- WSCoL


def test_wscol_needs_regions_with_a_background(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"WSCoL needs scores of the background.*fasterrcnn"):
        case(WSCoL, network=Detector("fcos", proposals_in_test=20), **TINY["WSCoL"]).make()


def test_without_contrast_it_is_the_source_free_teacher(tmp_path: Path) -> None:
    arguments = TINY["SourceFreeTeacher"]
    items = case(WSCoL, **arguments, contrast=0.0, width=4, contrasted=6), case(SourceFreeTeacher, **arguments)
    one, other = (item.train(tmp_path, limit_val_batches=0)[0] for item in items)
    assert not differences(one.network.state_dict(), other.network.state_dict())


def test_prototypes_are_proposed_and_the_mapping_learns(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, WSCoL)
    assert model.prototypes.any(1).all()
    terms = model.losses(batch)
    assert terms["contrast"] > 0
    terms["contrast"].backward()
    assert all(p.grad is not None for p in model.mapping.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())
