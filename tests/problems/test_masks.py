"""Segmentation: what its loss, metrics and evidence count, and the files that it writes."""

import csv
import io
import json
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from dafw import plots
from dafw.data import Domain
from dafw.data.padding import IGNORE
from dafw.errors import UserError
from dafw.methods import SourceOnly
from dafw.problems import MaskOutputs, Predicted, Segmentation, Shown
from dafw.problems.mask_files import file_names
from dafw.testing.dense_toys import ToySegmenter, toy_masks


def outputs(n: int = 3, classes: int = 4, *, sizes: Tensor | None = None, auxiliary: bool = False) -> MaskOutputs:
    torch.manual_seed(1)
    extra = torch.randn(n, classes, 6, 8) if auxiliary else None
    return MaskOutputs(torch.randn(n, 5, 3, 4), torch.randn(n, classes, 6, 8), extra, sizes=sizes)


def labels(n: int = 3, classes: int = 4) -> Tensor:
    y = torch.randint(0, classes, (n, 6, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    y[0, :2] = IGNORE
    y[1] = torch.where(y[1] == 3, IGNORE, y[1])
    return y


def by_hand(logits: Tensor, y: Tensor) -> Tensor:
    """The mean of -log p over the labelled pixels, one after the other."""
    found = [
        -logits[n, :, i, j].log_softmax(0)[int(y[n, i, j])] for n, i, j in np.ndindex(*y.shape) if y[n, i, j] != IGNORE
    ]
    return torch.stack(found).mean()


def test_the_loss_is_a_mean_over_the_labelled_pixels() -> None:
    found, y = outputs(auxiliary=True), labels()
    terms = Segmentation(auxiliary_weight=0.3).terms(found, y)
    torch.testing.assert_close(terms["supervised"], by_hand(found.logits, y))
    assert found.auxiliary is not None
    torch.testing.assert_close(terms["auxiliary"], 0.3 * by_hand(found.auxiliary, y))
    assert set(Segmentation().terms(outputs(), y)) == {"supervised"}
    rows = Segmentation(0.3).row_losses(found, y)
    expected = [
        by_hand(found.logits[i : i + 1], y[i : i + 1]) + 0.3 * by_hand(found.auxiliary[i : i + 1], y[i : i + 1])
        for i in range(3)
    ]
    torch.testing.assert_close(rows, torch.stack(expected))
    total, count = Segmentation(0.3).summed_loss(found, y)
    torch.testing.assert_close(total / count, terms["supervised"] + terms["auxiliary"])


def test_nothing_is_learnt_without_a_label() -> None:
    found = outputs()
    found.logits.requires_grad_()
    (term,) = Segmentation().terms(found, torch.full((3, 6, 8), IGNORE, dtype=torch.uint8)).values()
    assert term == 0
    term.backward()
    assert found.logits.grad is not None
    assert found.logits.grad.abs().sum() == 0
    assert Segmentation().row_losses(found, torch.full((3, 6, 8), IGNORE, dtype=torch.uint8)).tolist() == [0, 0, 0]


def test_padding_enters_neither_loss_nor_metric_nor_evidence() -> None:
    """The masks of the labelled rows may be padded less than images that come with larger ones."""
    problem, sizes = Segmentation(), torch.tensor([[4, 5], [6, 4], [3, 8]])
    honest, y = outputs(sizes=sizes), labels()
    for n, (height, width) in enumerate(sizes.tolist()):
        y[n, height:], y[n, :, width:] = IGNORE, IGNORE
    wild = MaskOutputs(honest.features.clone(), honest.logits.clone(), sizes=sizes)
    for n, (height, width) in enumerate(sizes.tolist()):
        wild.logits[n, :, height:], wild.logits[n, :, :, width:] = 1e4, -1e4
        wild.features[n, :, -(-height // 2) :], wild.features[n, :, :, -(-width // 2) :] = torch.nan, torch.nan
    found = []
    for one in (honest, wild):
        metrics = problem.metrics(4)
        problem.score(metrics, one, y)
        features, logits, _ = problem.evidence(one)
        prediction = problem.predictions(one)["prediction"]
        found.append(
            [
                *problem.values(metrics).values(),
                problem.loss(one, y),
                *problem.row_losses(one, y),
                *features,
                *logits,
                *problem.pseudo_labels(one)[1],
                *prediction,
                *one.vectors(),
            ]
        )
    assert [tuple(mask.shape) for mask in problem.predictions(honest)["prediction"]] == [(4, 5), (6, 4), (3, 8)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=0, atol=0, equal_nan=True)
    cropped = problem.terms(honest[:1], y[:1, :4, :5])
    torch.testing.assert_close(cropped["supervised"], problem.loss(honest[:1], y[:1]))
    with pytest.raises(ValueError, match=r"masks of \(6, 9\) for class scores of \(6, 8\)"):
        problem.loss(honest, torch.zeros(3, 6, 9, dtype=torch.uint8))


def test_the_metrics_are_torchmetrics() -> None:
    problem, found, y = Segmentation(), outputs(), labels()
    metrics = problem.metrics(4)
    for row in range(3):
        problem.score(metrics, found[row : row + 1], y[row : row + 1])
    values = problem.values(metrics, ["w", "x", "y", "z"])
    prediction, options = found.logits.argmax(1), {"num_classes": 4, "ignore_index": IGNORE}
    iou = multiclass_jaccard_index(prediction, y.long(), average="none", **options)
    assert [values[f"iou/{name}"] for name in "wxyz"] == pytest.approx(iou.tolist())
    assert values["miou"] == pytest.approx(float(iou.mean()))
    assert values["pixel_accuracy"] == pytest.approx(
        float(multiclass_accuracy(prediction, y.long(), average="micro", **options))
    )
    by_class = {f"{name}/{label}" for name in ("iou", "dice") for label in "wxyz"}
    assert set(values) == {"miou", "mdice", "pixel_accuracy"} | by_class
    for label, name in enumerate("wxyz"):
        each = []
        for row in range(3):
            known = y[row] != IGNORE
            own, theirs = (prediction[row] == label) & known, y[row] == label
            if either := int(own.sum() + theirs.sum()):
                each.append(2 * int((own & theirs).sum()) / either)
        assert values[f"dice/{name}"] == pytest.approx(np.mean(each), abs=1e-11)
    assert values["mdice"] == pytest.approx(np.mean([values[f"dice/{name}"] for name in "wxyz"]))


def test_a_class_without_a_label_is_in_no_mean_whatever_was_predicted() -> None:
    y = torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 2, 1, 1]]]), 3).permute(0, 3, 1, 2).float()
    metrics = Segmentation().metrics(3)
    Segmentation().score(metrics, MaskOutputs(logits, logits), y)
    found = Segmentation().values(metrics, ["a", "b", "c"])
    assert np.isnan([found["iou/c"], found["dice/c"]]).all()
    assert (found["miou"], found["mdice"]) == pytest.approx(((0.5 + 1) / 2, (2 / 3 + 1) / 2))


def test_metrics_do_not_depend_on_batches_or_ranks() -> None:
    """States are whole numbers that are added up, so that any division gives the same bits."""
    torch.manual_seed(3)
    logits, y = torch.randn(40, 5, 9, 7), torch.randint(0, 5, (40, 9, 7), dtype=torch.uint8)
    volume, problem, found = torch.arange(40) % 7, Segmentation(), []
    for batches in ([range(40)], [range(i, i + 8) for i in range(0, 40, 8)], [range(39, -1, -1)]):
        metrics, volumes = problem.metrics(5), problem.volume_metrics(5, 7)
        for rows in map(list, batches):
            outputs = MaskOutputs(logits[rows], logits[rows])
            problem.score(metrics, outputs, y[rows])
            problem.score_volumes(volumes, outputs, y[rows], volume[rows])
        found.append(problem.values(metrics) | problem.values(volumes))
    assert found[0] == found[1] == found[2]
    assert all(state.dtype == torch.int64 for metric in metrics.values() for state in metric.metric_state.values())


def test_dice_by_volume_takes_the_slices_of_a_volume_as_one_image() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1]], [[1, 1]], [[0, 0]]]), 3).permute(0, 3, 1, 2).float()
    y = torch.tensor([[[0, 1]], [[0, 1]], [[0, 255]]], dtype=torch.uint8)
    problem = Segmentation()
    metrics = problem.volume_metrics(3, 2)
    problem.score_volumes(metrics, MaskOutputs(logits, logits), y, torch.tensor([0, 0, 1]))
    found = problem.values(metrics, ["a", "b", "c"])
    assert found["dice_volume/a"] == pytest.approx((2 * 1 / 3 + 1) / 2)
    assert found["dice_volume/b"] == pytest.approx(2 * 2 / 5)
    assert np.isnan(found["dice_volume/c"])
    assert found["mdice_volume"] == pytest.approx((found["dice_volume/a"] + found["dice_volume/b"]) / 2)


def test_a_class_that_is_nowhere_is_undefined_and_in_no_mean() -> None:
    y = torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 0, 1, 0]]]), 3).permute(0, 3, 1, 2).float()
    metrics = Segmentation().metrics(3)
    Segmentation().score(metrics, MaskOutputs(logits, logits), y)
    found = Segmentation().values(metrics, ["a", "b", "c"])
    assert (found["iou/a"], found["iou/b"]) == pytest.approx((2 / 3, 1 / 2))
    assert np.isnan(found["iou/c"])
    assert found["miou"] == pytest.approx(7 / 12)
    empty = Segmentation().values(Segmentation().metrics(3))
    assert all(np.isnan(value) for value in empty.values())


def test_a_label_that_is_no_class_is_reported() -> None:
    metrics = Segmentation().metrics(3)
    for label in (3, 254):
        with pytest.raises(RuntimeError, match=f"pixels have the label {label}, and there are 3 classes"):
            Segmentation().score(metrics, outputs(1, 3), torch.full((1, 6, 8), label, dtype=torch.uint8))


def test_what_segmentation_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match="Segmentation knows no unknown classes"):
        Segmentation().metrics(3, has_unknown=True)
    with pytest.raises(UserError, match="a mask tells 255 classes apart, and the data has 256"):
        Segmentation().metrics(256)
    with pytest.raises(UserError, match=r"auxiliary_weight must be 0 or more"):
        Segmentation(auxiliary_weight=-1)
    from dafw.evaluation.rejection import Entropy

    with pytest.raises(UserError, match=r"Segmentation knows no unknown classes: leave out model\.rejection"):
        SourceOnly(ToySegmenter(), num_classes=3, problem=Segmentation(), rejection=Entropy())


def test_pseudo_labels() -> None:
    sizes = torch.tensor([[6, 8], [2, 3], [6, 8]])
    found = outputs(sizes=sizes)
    label, weight = Segmentation().pseudo_labels(found, threshold=0.5)
    share, best = found.logits.softmax(1).max(1)
    sure = share >= 0.5
    sure[1, 2:], sure[1, :, 3:] = False, False
    assert 0 < sure.sum() < sure.numel()
    assert torch.equal(label, torch.where(sure, best, IGNORE).to(torch.uint8))
    assert torch.equal(weight, sure.float())
    every, _ = Segmentation().pseudo_labels(outputs())
    assert (every != IGNORE).all()


def test_carried_masks_have_no_label_where_no_pixel_came_from() -> None:
    mask = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
    flip = torch.tensor([[[-1.0, 0, 4], [0, 1, 0]]])
    assert torch.equal(Segmentation().carry(mask, flip, (3, 4)), mask.flip(-1))
    move = torch.tensor([[[1.0, 0, 1], [0, 1, -1]]])
    assert Segmentation().carry(mask, move, (3, 4))[0].tolist() == [[255, 4, 5, 6], [255, 8, 9, 10], [255] * 4]
    double = torch.tensor([[[2.0, 0, 0], [0, 2, 0]]])
    assert torch.equal(Segmentation().carry(mask, double, (6, 8)), mask.repeat_interleave(2, 1).repeat_interleave(2, 2))
    same = torch.eye(2, 3)[None]
    inner = Segmentation().carry(mask, same, (3, 4), torch.tensor([[2, 3]]))
    assert inner[0].tolist() == [[0, 1, 2, 255], [4, 5, 6, 255], [255] * 4]


def test_evidence_is_a_fixed_grid_of_each_image() -> None:
    problem, sizes = Segmentation(evidence_grid=2), torch.tensor([[6, 8], [4, 4], [6, 2]])
    found, y = outputs(sizes=sizes), labels()
    features, logits, image = problem.evidence(found)
    assert (tuple(features.shape), tuple(logits.shape)) == ((12, 5), (12, 4))
    assert image.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    places = [[(1, 2), (1, 6), (4, 2), (4, 6)], [(1, 1), (1, 3), (3, 1), (3, 3)], [(1, 0), (1, 1), (4, 0), (4, 1)]]
    expected = [found.logits[n, :, i, j] for n, row in enumerate(places) for i, j in row]
    assert torch.equal(logits, torch.stack(expected))
    assert torch.equal(
        features, torch.stack([found.features[n, :, i // 2, j // 2] for n, row in enumerate(places) for i, j in row])
    )
    assert problem.evidence_labels(found, y).tolist() == [
        int(y[n, i, j]) for n, row in enumerate(places) for i, j in row
    ]


def test_files_of_samples(tmp_path: Path) -> None:
    masks = [torch.full((2, 3), value, dtype=torch.uint8) for value in range(4)]
    masks[1][0, 0] = 0
    ids, names = ["day/1.jpg", "day_1.jpg", "../../DAY/1.jpg", "é x"], ["zero", "one", "two", "three, 3"]
    columns = {"prediction": masks, "confidence": [0.5, 0.25, 1.0, 0.125]}
    last = {name: values[3:] for name, values in columns.items()}
    found = [Predicted("a/b", ids, columns, [None, (4, 9), None, None]), Predicted("a_b", ids[:1], last)]
    Segmentation().write_predictions(found, names, tmp_path / "out")
    with (tmp_path / "out" / "index.csv").open(encoding="utf-8", newline="") as file:
        header, *index = csv.reader(file)
    assert header == ["domain", "sample", "file", "confidence", *(f"share_{name}" for name in names)]
    files = [line[2] for line in index]
    assert len({file.casefold() for file in files}) == 5
    images = [Image.open(tmp_path / "out" / file) for file in files]
    assert [np.unique(np.asarray(image)).tolist() for image in images] == [[0], [0, 1], [2], [3], [3]]
    assert [image.size for image in images] == [(3, 2), (9, 4), (3, 2), (3, 2), (3, 2)]
    assert [len({colour for _, colour in image.convert("RGB").getcolors()}) for image in images] == [1, 2, 1, 1, 1]
    assert [line[:2] for line in index] == [["a/b", one] for one in ids] + [["a_b", ids[0]]]
    assert [float(line[3]) for line in index] == [0.5, 0.25, 1.0, 0.125, 0.125]
    shares = np.asarray([line[4:] for line in index], float)
    assert shares.argmax(1).tolist() == [0, 1, 2, 3, 3]
    assert shares[1].tolist() == pytest.approx([1 / 6, 5 / 6, 0, 0], abs=1e-5)
    inside = {path.resolve() for path in (tmp_path / "out").rglob("*.png")}
    assert len(inside) == 5
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, and masks need a folder"):
        Segmentation().write_predictions(found, names, tmp_path / "file")


def test_the_confidence_is_a_mean_over_the_pixels_of_a_sample() -> None:
    sizes = torch.tensor([[6, 8], [2, 3], [6, 8]])
    found = outputs(sizes=sizes)
    largest = found.logits.softmax(1).amax(1)
    confidence = Segmentation().predictions(found)["confidence"]
    expected = [largest[0].mean(), largest[1, :2, :3].mean(), largest[2].mean()]
    torch.testing.assert_close(confidence, torch.stack(expected))
    torch.testing.assert_close(Segmentation().predictions(outputs())["confidence"], largest.mean((1, 2)))


def test_file_names_never_collide() -> None:
    names = ["a", "A", "a-1", "a/", "a:", "", ".", "..", "-x", "x" * 300, "x" * 301, "漢" * 100]
    found = file_names(names)
    assert len({name.casefold() for name in found}) == len(names)
    assert all(name and "/" not in name and name[0] not in ".-" for name in found)
    assert all(len(f"{name}.png.1234567.unfinished".encode()) <= 255 for name in found)


def test_wrong_samples_are_named() -> None:
    domain = toy_masks("a", 5, sizes=True)
    masks: Any = [mask.clone() for mask in domain.labels]  # type: ignore[union-attr]
    assert Segmentation().wrong_samples(domain, 3) == []
    masks[1][2, 2], masks[2], masks[3] = 7, masks[2][:, :4], torch.tensor(1)
    wrong = Domain("a", domain.inputs, masks, [f"{i}.png" for i in range(5)])
    assert Segmentation().wrong_samples(wrong, 3) == [
        "1.png has pixels of class 7, but there are 3 classes",
        "2.png is 8x5 and its mask 8x4",
        "3.png has a label that is no mask of height and width",
    ]
    assert Segmentation().wrong_samples(domain.unlabelled(), 3) == []


def test_scores_are_scaled_back_before_a_class_is_chosen() -> None:
    """A class that is second best at two neighbouring pixels may be the best in between."""
    problem = Segmentation()
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.9]])[None, :, None].expand(-1, -1, 2, -1)
    found = MaskOutputs(torch.zeros(1, 2, 2, 2), logits)
    plain = problem.predictions(found)
    assert plain["prediction"][0].tolist() == [[0, 1], [0, 1]]
    (scaled,) = problem.predictions_at(found, [(4, 8)])["prediction"]
    assert scaled.tolist() == [[0, 0, 2, 2, 2, 2, 1, 1]] * 4
    scores = torch.nn.functional.interpolate(logits, (4, 8), mode="bilinear", align_corners=False)
    confidence = problem.predictions_at(found, [(4, 8)])["confidence"]
    torch.testing.assert_close(confidence, scores.softmax(1).amax(1).mean()[None])
    assert not confidence.equal(plain["confidence"]), "the confidence is that of the mask that is written"
    assert problem.predictions_at(found, [None])["confidence"].equal(plain["confidence"])
    (same,) = problem.predictions_at(found, [None])["prediction"]
    assert same.equal(plain["prediction"][0])
    padded = MaskOutputs(found.features, logits, sizes=torch.tensor([[2, 1]]))
    (cut,) = problem.predictions_at(padded, [(4, 2)])["prediction"]
    assert cut.tolist() == [[0, 0]] * 4


def test_pictures_show_an_earlier_model_beside_the_last() -> None:
    problem, found, y = Segmentation(), outputs(2), labels(2)
    images = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)
    now, before = problem.predictions(found), problem.predictions(replace(found, logits=-found.logits))
    shown = [Shown("a", False, images, found, y, now, earlier=before, earlier_name="step 5")]
    (figure,) = problem.pictures(shown, ["w", "x", "y", "z"]).values()
    assert [axis.get_title() for axis in figure.axes[:4]] == ["image", "label", "step 5", "prediction"]
    assert [len(axis.images) for axis in figure.axes] == [1] * 8


def test_pictures_show_a_few_samples_with_and_without_labels() -> None:
    problem, found, y = Segmentation(), outputs(2), labels(2)
    images = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)
    predictions = problem.predictions(found)
    shown = [Shown("a", False, images, found, y, predictions), Shown("b", True, images, found, None, predictions)]
    (figure,) = problem.pictures(shown, ["w", "x", "y", "z"]).values()
    pictures = [len(axis.images) for axis in figure.axes]
    assert pictures == [1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["w", "x", "y", "z", "no label"]
    assert problem.pictures([], ["w"]) == {}


def test_examples_of_targets_are_drawn_for_several_runs() -> None:
    problem, found, y = Segmentation(), outputs(2), labels(2)
    images = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8)
    predictions = problem.predictions(found)
    shown = [Shown("a", False, images, found, y, predictions), Shown("b", True, images, found, y, predictions)]
    kept = json.loads(json.dumps(problem.examples(shown, ["w", "x", "y", "z"])))
    assert (kept["kind"], kept["classes"], list(kept["targets"])) == ("masks", ["w", "x", "y", "z"], ["b"])
    first, second = kept["targets"]["b"]
    runs = {"one": [first, {**second, "label": None}], "two": [first, {**second, "jpeg": first["jpeg"]}]}
    figure = plots.same_images({**kept, "domains": {"a->b": runs}}, theme="dark")
    assert [axis.get_title() for axis in figure.axes[:4]] == ["image", "label", "one", "two"]
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 1, 1, 0, 1, 0], "no label, and another image"
    shapes = [axis.images[0].get_array().shape for axis in figure.axes[:4]]  # type: ignore[union-attr]
    assert shapes == [(6, 8, 3)] * 4
    drawn = figure.axes[2].images[0].get_array()
    colours = [tuple(drawn[place]) for place in np.ndindex(6, 8)]  # type: ignore[index]
    classes = predictions["prediction"][0].flatten().tolist()
    assert len(set(zip(colours, classes, strict=True))) == len(set(classes)), "a colour for each class"
    large = plots.kept_masks(np.zeros((100, 800, 3)), None, np.tile(np.arange(2), (100, 400)))
    assert Image.open(io.BytesIO(b64decode(large["found"]))).size == (400, 50)
