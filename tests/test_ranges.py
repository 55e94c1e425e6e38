"""Numbers out of the range that an argument declares are refused when an object is made."""

import copy
import inspect
import math
import pickle
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

import dafw.methods
from dafw.callbacks.swad import SWAD
from dafw.errors import UserError
from dafw.methods import DANN, DRM, AdaptationMethod, Method
from dafw.nn.detector import Detector
from dafw.nn.network import Network
from dafw.optim.schedules import InverseDecay
from dafw.optim.sharpness import SAM, GAMObjective
from dafw.problems import Classification
from dafw.ranges import FINITE, Checked, NonNegativeFloat, PositiveInt, Range, _declared
from dafw.testing.toys import ToyData, toy_network

METHODS = [one for name in dafw.methods.__all__ if isinstance(one := getattr(dafw.methods, name), type)]


class Base(Checked):
    config_key = "part"

    def __init__(self, weight: NonNegativeFloat = 1.0, **rest: Any) -> None:
        self.weight = weight


class Part(Base):
    def __init__(
        self,
        width: PositiveInt,
        shares: list[float] | None = None,
        *,
        often: Annotated[int, Range("must be odd and small", 1, 9)] | None = None,
        name: str = "x",
        weight: float = 2.0,
        **base: Any,
    ) -> None:
        super().__init__(weight, **base)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ((0,), {}, "part.width must be at least 1, not 0"),
        ((), {"width": -3}, "part.width must be at least 1, not -3"),
        ((1, [0.1, math.nan]), {}, "part.shares must be a finite number, not nan"),
        ((1,), {"often": 11}, "part.often must be odd and small, not 11"),
        ((1,), {"weight": -1}, "part.weight must be 0 or more, not -1"),
        ((1,), {"weight": math.inf}, "part.weight must be 0 or more, not inf"),
    ],
)
def test_what_is_refused(arguments: tuple[Any, ...], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        Part(*arguments, **options)
    assert str(caught.value) == said


def test_what_is_not_refused() -> None:
    made = Part(1, None, often=None, name="nan", weight=0, other=math.nan)
    assert made.weight == 0
    assert copy.deepcopy(made).weight == pickle.loads(pickle.dumps(made)).weight == 0
    assert Part(2, shares=[0.5]).weight == 2


def test_ends_of_a_range() -> None:
    half = Range("", 0, 1, above=True)
    assert [x in half for x in (0, 1e-9, 1, 1.1, math.nan)] == [False, True, True, False, False]
    assert [x in Range("", 0, below=True, finite=False) for x in (0, 5, math.inf)] == [True, True, False]
    assert math.inf in Range("", 0, finite=False)


@pytest.mark.parametrize("owner", METHODS, ids=lambda owner: owner.__name__)
def test_every_number_of_a_method_has_a_range(owner: type[Method]) -> None:
    """Besides those that are never given, or hold any finite number."""
    ranges = _declared(owner)[1]
    for name, parameter in inspect.signature(owner.__init__).parameters.items():
        if name not in ("num_classes", "num_sources") and parameter.default not in (True, False):
            assert name in ranges or not isinstance(parameter.default, int | float), name
    assert ranges["lr"].above


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("owner", METHODS, ids=lambda owner: owner.__name__)
def test_no_method_takes_nan_or_infinity(owner: type[Method], value: float) -> None:
    for name, wanted in _declared(owner)[1].items():
        if value not in wanted:
            with pytest.raises(UserError, match=rf"model\.{name} .*, not {value}"):
                owner(**{name: value})
        else:
            assert (name, value) == ("gamma", math.inf)
            assert issubclass(owner, DRM) or owner.__name__ == "DRMRetraining"


class Mine(AdaptationMethod):
    """A user's own."""

    def __init__(self, network: Network, *, gain: float = 1.0, weight: NonNegativeFloat = 1.0, **base: Any) -> None:
        super().__init__(network, **base)


def test_a_method_of_the_user_is_checked() -> None:
    for options, said in (
        ({"gain": math.nan}, "model.gain must be a finite number, not nan"),
        ({"weight": -0.5}, "model.weight must be 0 or more, not -0.5"),
        ({"ema_decay": 1}, "model.ema_decay must be at least 0 and below 1, not 1"),
    ):
        with pytest.raises(UserError) as caught:
            Mine(toy_network(), num_classes=3, **options)
        assert str(caught.value) == said


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Network(bottleneck=0), "model.network.bottleneck must be at least 1, not 0"),
        (lambda: Network(mixstyle_p=3), "model.network.mixstyle_p must be from 0 to 1, not 3"),
        (lambda: Network(std=[1.0, math.nan]), "model.network.std must be a finite number, not nan"),
        (lambda: Detector(regions_per_image=0), "model.network.regions_per_image must be at least 1, not 0"),
        (lambda: SAM(math.nan), "model.sharpness.rho must be 0 or more, not nan"),
        (lambda: GAMObjective(weight=-1), "model.sharpness.weight must be 0 or more, not -1"),
        (lambda: InverseDecay(alpha=math.nan), "model.schedule.alpha must be 0 or more, not nan"),
        (lambda: SWAD(ratio=math.nan), "trainer.callbacks.ratio must be 0 or more, not nan"),
        (lambda: Classification(label_smoothing=1.5), "model.problem.label_smoothing must be from 0 to 1, not 1.5"),
        (lambda: DANN(toy_network(), num_classes=3, ramp_steps=-3), "model.ramp_steps must be at least 1, not -3"),
    ],
)
def test_parts(make: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == said


class Data(ToyData):
    """A user's own."""

    def __init__(self, *arguments: Any, noise: float = 0.0, **base: Any) -> None:
        super().__init__(*arguments, **base)


def test_a_datamodule_of_the_user_is_checked() -> None:
    with pytest.raises(UserError, match=r"data\.noise must be a finite number, not nan"):
        Data("a", "b", noise=math.nan)


def test_a_type_that_cannot_be_read_is_no_obstacle() -> None:
    class Odd(Checked):
        def __init__(self, width: "Nowhere", height: float = 1.0) -> None:  # type: ignore[name-defined] # noqa: F821
            self.width = width

    assert Odd(-1).width == -1
    with pytest.raises(UserError, match="height must be a finite number"):
        Odd(1, math.nan)


def test_a_dataclass_is_checked() -> None:
    @dataclass(frozen=True)
    class Step(Checked):
        size: PositiveInt = 1

    assert Step(2).size == 2
    with pytest.raises(UserError, match="size must be at least 1, not 0"):
        Step(0)
    assert repr(FINITE) == "must be a finite number"
