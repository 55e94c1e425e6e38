"""``dafw new method Name``: a method that works, and the test that holds it to the contract."""

import argparse
import keyword
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from dafw.errors import UserError

METHOD = '''"""{name}: the mean features of both domains are drawn together."""

from typing import Any, ClassVar

from dafw.methods import AdaptationMethod, Losses
from dafw.nn.distributed import gather_rows
from dafw.nn.network import Network
from dafw.problems import Outputs


class {name}(AdaptationMethod):
    """Source and target features with the same mean.

    Loss: CE(source) + weight * ||mean(f_s) - mean(f_t)||^2, features (n, d), means over the rows of each domain.

    This is the linear discrepancy of Tzeng et al., Deep Domain Confusion, 2014, https://arxiv.org/abs/1412.3474,
    equation 1. Replace it by your own term, and this text by what it is.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the distance between the means.
        base: see :class:`dafw.methods.Method`.
    """

    #: What switches the adaptation off: the control that tables print beside the method.
    control: ClassVar[dict[str, Any]] = {{"weight": 0.0}}
    #: Hyper-parameters worth searching: (low, high), or a list of choices.
    search_space: ClassVar[dict[str, Any]] = {{"weight": (0.01, 10.0), "lr": (1e-3, 1e-1)}}

    def __init__(self, network: Network, *, weight: float = 1.0, **base: Any) -> None:
        super().__init__(network, **base)
        self.weight = weight

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        """The distance between the means over the rows of all ranks: (n_s, d), (n_t, d) -> scalar."""
        difference = gather_rows(source.features).mean(0) - gather_rows(target.features).mean(0)
        return {{"distance": self.weight * difference.square().sum()}}
'''

TEST = '''"""{name} keeps the contract of every method."""

from pathlib import Path

import pytest
from dafw.testing import case, contract

from {module} import {name}

CASE = case({name})  # further arguments make the method small: case({name}, weight=0.5)


def test_target_labels_change_nothing(tmp_path: Path) -> None:
    contract.check_label_blind(CASE, tmp_path)


def test_a_resumed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    assert contract.check_resume([CASE], tmp_path) == {{CASE.name: {{}}}}


def test_two_ranks_train_what_one_trains(tmp_path: Path) -> None:
    difference = contract.check_ranks([CASE], tmp_path)[CASE.name]
    assert difference > 1e-9 if CASE.owner.rank_difference_reason else difference <= 1e-9


def test_a_step_never_waits_for_the_device(tmp_path: Path) -> None:
    contract.check_no_stall(CASE, tmp_path)


def test_a_prediction_depends_on_its_image_alone(tmp_path: Path) -> None:
    contract.check_batch_free_inference(CASE, tmp_path)


def test_a_checkpoint_makes_the_method_again(tmp_path: Path) -> None:
    contract.check_round_trip(CASE, tmp_path)


@pytest.mark.skipif(not CASE.owner.adversarial, reason="it has no adversarial term")
def test_reversed_gradients(tmp_path: Path) -> None:
    contract.check_reversed_gradients(CASE, tmp_path)


def test_half_precision(tmp_path: Path) -> None:
    contract.check_bf16(CASE, tmp_path)


def test_documented() -> None:
    contract.check_documented(CASE)


@pytest.mark.skipif(not CASE.owner.control, reason="there is nothing to switch off")
def test_switched_off_it_is_source_only(tmp_path: Path) -> None:
    contract.check_control(CASE, tmp_path)
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``dafw new``."""
    parser.add_argument("kind", choices=["method"], help="what to write")
    parser.add_argument("name", help="name of the class, as in MeanMatching")
    parser.add_argument("--dir", type=Path, default=Path(), help="folder to write into (this one)")


def main(args: argparse.Namespace) -> int:
    """Writes the two files and says how to run them.

    Raises:
        UserError: for a name that is no class name, or that would hide a module, and for files that exist.
    """
    name, folder = check_name(args.name), Path(args.dir)
    module = snake_case(name)
    texts = {folder / f"{module}.py": METHOD, folder / f"test_{module}.py": TEST}
    for path in texts:
        if path.exists():
            raise UserError(f"{path} exists already: choose another name, or remove it")
    if module in sys.stdlib_module_names or find_spec(module) is not None:
        raise UserError(f'{module}.py would hide the module "{module}": choose another name, such as "{name}Method"')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text.format(name=name, module=module), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from error
    there = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    for path in texts:
        print(f"wrote {path}")
    print(f"{there}dafw fit --model {module}.{name} --data Digits --data.source mnist --data.target mnistm")
    print(f"{there}python -m pytest test_{module}.py")
    return 0


def check_name(name: str) -> str:
    """Returns ``name`` if it can be a class's.

    Raises:
        UserError: otherwise, with a name that can.
    """
    if re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) and not keyword.iskeyword(name):
        return name
    words = re.findall(r"[A-Za-z0-9]+", name)
    camel = "".join(word[0].upper() + word[1:] for word in words).lstrip("0123456789")
    camel = camel[:1].upper() + camel[1:]
    if not camel or keyword.iskeyword(camel):
        camel = f"My{camel or 'Method'}"
    raise UserError(f'"{name}" cannot name a class: did you mean "{camel}"?')


def snake_case(name: str) -> str:
    """The module's name.

    >>> snake_case("DeepCORALPlus"), snake_case("MeanMatching"), snake_case("DANN2")
    ('deep_coral_plus', 'mean_matching', 'dann2')
    """
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", parted).lower()
