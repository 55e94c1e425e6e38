"""Plots: what is drawn, from arrays alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from dafw.plots import (
    COLOURS,
    Dot,
    ExampleRow,
    Examples,
    confusion,
    curves,
    embedding,
    examples,
    histories,
    read_metrics,
    save,
    stream_errors,
    table_bars,
    titled,
)


def legend(axis: Axes) -> list[str]:
    found = axis.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def points(axis: Axes) -> int:
    return sum(len(np.asarray(one.get_offsets())) for one in axis.collections if isinstance(one, PathCollection))


def blobs(count: int) -> tuple[np.ndarray, list[str], list[int]]:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(2 * count, 60)) + np.repeat([0, 8], count)[:, None]
    return features, ["mnist"] * count + ["usps"] * count, list(range(2)) * count


def test_an_embedding_shows_every_sample_by_domain_and_by_class() -> None:
    features, domains, classes = blobs(40)
    figure = embedding(features, domains, classes, class_names=["zero", "one"], title="DANN")
    left, right = figure.axes
    assert (points(left), points(right)) == (80, 80)
    assert legend(left) == ["mnist", "usps"]
    assert legend(right) == ["zero", "one"]
    first, second = (np.asarray(one.get_offsets()) for one in left.collections[:2])
    gap = np.linalg.norm(first.mean(0) - second.mean(0))
    assert gap > max(first.std(0).max(), second.std(0).max())


def test_an_embedding_is_cut_to_the_limit_and_is_the_same_twice() -> None:
    features, domains, classes = blobs(60)
    drawn = [embedding(features, domains, classes, limit=30, seed=1) for _ in range(2)]
    assert points(drawn[0].axes[0]) == 30
    places = [np.asarray(figure.axes[0].collections[0].get_offsets()) for figure in drawn]
    np.testing.assert_array_equal(places[0], places[1])


def test_an_embedding_of_many_classes_has_no_legend_of_them() -> None:
    features, domains, _ = blobs(40)
    figure = embedding(features, domains, list(range(40)) * 2)
    assert legend(figure.axes[1]) == []
    faces = [np.asarray(one.get_facecolor()) for one in figure.axes[1].collections]
    assert len({tuple(face[0, :3]) for face in faces}) == 40


ODD = ["US$_AU$", "_background", r"a\$b"]
"""Names that matplotlib would read as mathematics, leave out of a legend, or read as escaped."""


def drawn(figure: Figure) -> list[str]:
    """Every text as matplotlib draws it, which a test would not see in ``get_text``."""
    figure.canvas.draw()
    found = []
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        said, is_math = text._preprocess_math(text.get_text())  # type: ignore[attr-defined]
        assert not is_math, said
        found += said.strip("\N{THIN SPACE}").split("\n")
    return found


@pytest.mark.parametrize(
    "draw",
    [
        lambda: embedding(blobs(6)[0][:9], ODD * 3, [0, 1, 2] * 3, class_names=ODD, title=ODD[0]),
        lambda: confusion(np.eye(3), ODD, title=ODD[0]),
        lambda: examples([panel(name, "a") for name in ODD], ["a", "b"]),
        lambda: examples([panel("cat", "a")], [*ODD, "a"]),
        lambda: table_bars([Dot(name, f"{name}->b", 70) for name in ODD]),
        lambda: histories({name: {name: ([1, 2], [50, 60], [1, 2])} for name in ODD}),
        lambda: curves({f"train/{name}": ([1, 2], [3, 4]) for name in ODD}),
        lambda: curves({f"val/{name}": ([1, 2], [3, 4]) for name in ODD}),
    ],
)
def test_names_are_drawn_as_they_are_written(draw: Callable[[], Figure]) -> None:
    said = " ".join(drawn(draw()))
    for name in ODD:
        assert name in said


@pytest.mark.parametrize(
    "features",
    [
        np.zeros((9, 60)),
        np.full((9, 60), 1e30),
        np.full((9, 1), 0.1),
        1 + 1e-8 * np.random.default_rng(0).normal(size=(9, 60)),
    ],
)
def test_features_that_are_all_equal_have_one_place(features: np.ndarray) -> None:
    """As of a network that collapsed, or of blank images."""
    figure = embedding(features, ["a", "b", "c"] * 3, [0] * 9)
    places = [np.asarray(one.get_offsets()) for one in figure.axes[0].collections]
    np.testing.assert_array_equal(np.concatenate(places), np.zeros((9, 2)))
    assert figure.axes[0].get_title(loc="left") == "by domain (all features are equal)"


@pytest.mark.parametrize(
    "features",
    [
        np.arange(9.0)[:, None],
        np.concatenate([np.zeros((8, 60)), np.ones((1, 60))]),
        1e300 * np.eye(9),
        1e-300 * np.eye(9),
        1e8 + np.eye(9, 60) * 1e4,
    ],
)
def test_features_that_are_hardly_different_are_drawn(features: np.ndarray) -> None:
    figure = embedding(features, ["a", "b", "c"] * 3, [0] * 9)
    places = np.concatenate([np.asarray(one.get_offsets()) for one in figure.axes[0].collections])
    assert np.isfinite(places).all()
    assert np.ptp(places) > 0
    assert figure.axes[0].get_title(loc="left") == "by domain"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="a feature is not finite"):
        embedding(np.full((9, 60), value), ["a", "b", "c"] * 3, [0] * 9)


@pytest.mark.parametrize("shape", [(3, 5), (8,), (9, 5)])
def test_an_embedding_of_arrays_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        embedding(np.zeros(shape), ["a"] * 8, [0] * 8)


def test_a_confusion_matrix_is_in_percent_of_the_true_class() -> None:
    figure = confusion(np.array([[3, 1, 0], [0, 0, 0], [5, 0, 5]]), ["a", "b", "c"], title="usps")
    axis = figure.axes[0]
    np.testing.assert_allclose(np.asarray(axis.images[0].get_array()), [[75, 25, 0], [0, 0, 0], [50, 0, 50]])
    assert sorted(text.get_text() for text in axis.texts) == ["25", "50", "50", "75"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for 3 classes"):
        confusion(np.eye(2), ["a", "b", "c"])


METRICS = """step,epoch,train/loss,train/domain,val/im,val/snd,oracle/accuracy,diagnostics/ramp
10,,2.0,0.7,,,,0.1
20,0,0.001,0.6,,,,0.2
20,,,,0.5,4.1,0.6,
40,1,,,0.7,4.2,0.8,
"""


def test_curves_read_the_log_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS, encoding="utf-8")
    read = read_metrics(path)
    assert "epoch" not in read
    np.testing.assert_array_equal(read["val/im"], [[20, 40], [0.5, 0.7]])
    for figure in (curves(path, title="run"), curves(dict(read))):
        shown = {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_visible()}
        assert list(shown) == [
            "terms of the loss",
            "oracle: what target labels say",
            "val: im",
            "val: snd",
            "diagnostics: ramp",
        ]
        assert legend(shown["terms of the loss"]) == ["loss", "domain"]
        assert shown["terms of the loss"].get_yscale() == "log"
        assert shown["val: im"].get_yscale() == "linear"
        np.testing.assert_array_equal(np.asarray(shown["val: im"].lines[0].get_xydata()), [[20, 0.5], [40, 0.7]])
    with pytest.raises(ValueError, match="no values"):
        curves({})


def test_curves_of_one_panel_can_be_told_apart_and_have_one_scale() -> None:
    steps = list(range(40))
    names = ["critic_accuracy_source", "critic_accuracy_target", "gradient_ratio_domain", "ramp"]
    series = {f"diagnostics/{name}": (steps, np.linspace(0.001, 1 + place, 40)) for place, name in enumerate(names)}
    series |= {f"train/{place}": (steps, np.full(40, float(place))) for place in range(10)}
    series |= {f"oracle/{name}": (steps, np.linspace(0, 1, 40)) for name in ("accuracy", "test/b/accuracy")}
    shown = {axis.get_title(loc="left"): axis for axis in curves(series | {"rate/lr": (steps, steps)}).axes}
    assert [title for title in shown if title] == [
        *("terms of the loss", "terms of the loss (2)", "oracle: what target labels say", "learning rate"),
        *("diagnostics: critic accuracy", "diagnostics: gradient ratio", "diagnostics: ramp"),
    ]
    assert legend(shown["oracle: what target labels say"]) == ["accuracy = test/b/accuracy"]
    for axis in shown.values():
        looks = {(line.get_color(), line.get_linestyle()) for line in axis.lines}
        assert len(looks) == len(axis.lines)
    assert shown["diagnostics: gradient ratio"].get_yscale() == "log"


def test_a_class_has_the_colour_of_no_domain_and_the_title_says_what_classes_are() -> None:
    features, domains, classes = blobs(40)
    left, right = embedding(features, domains, classes, by="true class").axes
    colours = [{tuple(one.get_facecolor()[0, :3]) for one in axis.collections} for axis in (left, right)]
    assert not colours[0] & colours[1]
    assert right.get_title(loc="left") == "by true class, n = 80"


def test_a_title_is_a_line_above_unless_there_is_one() -> None:
    plain, named = curves({"x": ([1], [2])}), curves({"x": ([1], [2])}, title="mine")
    assert titled(plain, "DANN, a->b, seed 0").get_suptitle() == "DANN, a->b, seed 0"
    long = "DANN, mnist->optdigits, seed 0, step 250, accuracy 0.9025, n = 359, and whatever else there is to say of it"
    assert titled(Figure(), long).get_suptitle().replace("\n", " ") == long
    assert titled(named, "DANN").get_suptitle() == "mine"


DOTS = [
    Dot("DANN", "a->b", 70, 2),
    Dot("DANN", "a->b", 60, 1, "control"),
    Dot("DANN", "a->b", 75, None, "published"),
    Dot("source only", "a->b", 50),
    Dot("DANN", "b->a", 80, 3),
]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_table_as_a_picture(theme: str) -> None:
    figure = table_bars(DOTS, theme=theme)  # type: ignore[arg-type]
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a → b", "b → a"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "DANN",
        "source only",
        "hollow: control",
        "tick: published",
    ]
    paper = figure.get_facecolor()
    faces = [one.lines[0].get_markerfacecolor() for one in axis.containers]  # type: ignore[attr-defined]
    hollow = [np.allclose(Figure(facecolor=face).get_facecolor(), paper) for face in faces]
    assert hollow == [False, True, False, False]
    with pytest.raises(ValueError, match="no numbers"):
        table_bars([])


def test_a_table_over_training() -> None:
    steps = [200, 400]
    given = {"a->b": {"DANN": (steps, [50, 60], [1, 2]), "CDAN": (steps, [40, 70], [0, 0])}, "b->a": {}}
    figure = histories(given)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a → b"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DANN", "CDAN"]
    np.testing.assert_array_equal(np.asarray(figure.axes[0].lines[1].get_ydata()), [40, 70])
    with pytest.raises(ValueError, match="no series"):
        histories({"a->b": {}})


def panel(name: str, *groups: str, samples: int = 9) -> Examples:
    """A panel whose groups have an image for each letter, of that domain, as bright as its place."""
    images = [np.stack([np.full((4, 6, 3), (i + 1) / 10) for i in range(len(group))]) for group in groups]
    rows = [ExampleRow(f"g{i}", 3, one, list(group)) for i, (one, group) in enumerate(zip(images, groups, strict=True))]
    return Examples(name, samples, 5, rows)


def test_examples_have_a_panel_for_each_class() -> None:
    figure = examples([panel("cat", "ab", "b"), panel("dog", "a")], ["a", "b"], what="kinds")
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["cat: 9 samples in 5 kinds", "dog: 9 samples in 5 kinds"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["g0\nn = 3", "g1\nn = 3"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    pixels = np.asarray(figure.axes[0].images[0].get_array())
    assert pixels.shape == (2 * (4 + 3), 2 * (6 + 3), 3)
    np.testing.assert_allclose(pixels[1:5, 1:7], 0.1)
    np.testing.assert_allclose(pixels[1:5, 10:16], 0.2)
    np.testing.assert_allclose(pixels[0, 0], to_rgb(COLOURS[0]))
    np.testing.assert_allclose(pixels[0, 9], to_rgb(COLOURS[1]))
    np.testing.assert_allclose(pixels[7:, 9:], 1)  # the second group has one image


def test_examples_of_one_domain_have_no_frames() -> None:
    figure = examples([panel("cat", "aa")], ["a"])
    assert figure.legends == []
    np.testing.assert_allclose(np.asarray(figure.axes[0].images[0].get_array())[0], 1)
    with pytest.raises(ValueError, match="no image"):
        examples([Examples("cat", 3, 0, [])], ["a"])


@pytest.mark.parametrize(
    "draw", [lambda: confusion(np.eye(3), ["a", "b", "c"]), lambda: table_bars(DOTS), lambda: curves({"x": ([1], [2])})]
)
def test_a_saved_picture_is_a_picture(tmp_path: Path, draw: Callable[[], Figure]) -> None:
    save(draw(), tmp_path / "plots" / "x.png")
    pixels = imread(tmp_path / "plots" / "x.png")
    assert min(pixels.shape[:2]) > 200
    assert np.ptp(pixels[..., :3]) > 0.5


def test_plots_need_neither_torch_nor_a_screen() -> None:
    code = "import sys, dafw.plots; assert not {'torch', 'matplotlib.pyplot', 'sklearn'} & set(sys.modules)"
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_error_along_a_stream_marks_its_shifts() -> None:
    bins = {"error": [0.5, 0.25, 0.25], "start_error": [0.5, 0.5, float("nan")]}
    figure = stream_errors(bins, [("fog_5", 0), ("snow_$5", 40)], 60)
    (axis,) = figure.axes
    assert [line.get_xdata()[0] for line in axis.lines] == [40]
    assert [text.get_text() for text in axis.texts] == ["fog_5", r"snow_\$5"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["served", "start model"]
    many = stream_errors(bins, [(f"fog_{number}", number) for number in range(60)], 60)
    assert len(many.axes[0].texts) == 20
    with pytest.raises(ValueError, match="no errors to draw"):
        stream_errors({"error": [float("nan")]}, [("fog_5", 0)], 60)
