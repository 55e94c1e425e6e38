"""The texts that ``dafw new method`` writes."""

from typing import NamedTuple

MEANS = '''"""{name}: the mean features of both domains are drawn together."""

from typing import Any, ClassVar

from dafw.methods import AdaptationMethod, Losses
from dafw.nn.distributed import gather_rows
{imports}


class {name}(AdaptationMethod):
    """Source and target features with the same mean.

    Loss: {loss}

    This is the linear discrepancy of Tzeng et al., Deep Domain Confusion, 2014, https://arxiv.org/abs/1412.3474,
    equation 1. Replace it by your own term, and this text by what it is.

    Args:
        network: images (N, C, H, W) to {outputs}.
        weight: weight of the distance between the means.
        base: see :class:`dafw.methods.Method`.
    """

{kinds}    #: What switches the adaptation off: the control that tables print beside the method.
    control: ClassVar[dict[str, Any]] = {{"weight": 0.0}}
    #: Hyper-parameters worth searching: (low, high), or a list of choices.
    search_space: ClassVar[dict[str, Any]] = {{"weight": (0.01, 10.0), "lr": (1e-3, 1e-1)}}

    def __init__(self, network: {network}, *, weight: float = 1.0, **base: Any) -> None:
        super().__init__(network, **base)
        self.weight = weight

    def adapt(self, source: {kind}, target: {kind}, joint: {kind}) -> Losses:
        """The distance between the means over the rows of all ranks: (n_s, d), (n_t, d) -> scalar."""
        difference = gather_rows(source.{vectors}).mean(0) - gather_rows(target.{vectors}).mean(0)
        return {{"distance": self.weight * difference.square().sum()}}
'''

ENTROPY = '''"""{name}: predictions become more certain while they are served."""

from typing import Any, ClassVar

from dafw.data.batch import Batch
from dafw.losses.entropy import mean_entropy
from dafw.methods import Losses, TestTimeMethod
from dafw.methods.test_time import Learns, StatisticsRule
from dafw.nn.network import Network
from dafw.problems import Outputs


class {name}(TestTimeMethod):
    """A trained model that lowers the entropy of its predictions on each batch of the test stream.

    Loss: weight * mean H(softmax(logits)), logits (n, K), over the n samples of the batch that was just served.

    This is the objective of Wang et al., Tent, ICLR 2021, https://arxiv.org/abs/2006.10726, equation 1, on all weights.
    Replace it by your own term, and this text by what it is.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the entropy.
        base: see :class:`dafw.methods.TestTimeMethod`.
    """

    #: What learns: ``norm`` for scale and shift of the normalisations, ``network``, ``head`` or ``nothing``. With
    #: ``nothing`` the adaptation is switched off: that is the control that tables print beside the method.
    default_learns: ClassVar[Learns] = "network"
    #: By what batch normalisation normalises a batch: ``running``, ``batch``, ``average`` or ``mixed``.
    default_statistics: ClassVar[StatisticsRule] = "running"
    #: Hyper-parameters worth searching: (low, high), or a list of choices.
    search_space: ClassVar[dict[str, Any]] = {{"weight": (0.1, 10.0), "lr": (1e-4, 1e-2)}}

    def __init__(self, network: Network, *, weight: float = 1.0, **base: Any) -> None:
        super().__init__(network, **base)
        self.weight = weight

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """The mean entropy of the batch: (n, K) -> scalar. The batch has no labels."""
        return {{"entropy": self.weight * mean_entropy(outputs.logits)}}
'''

TEST = '''"""{name} keeps the contract of every method."""

from pathlib import Path

import pytest
from dafw.testing import case, contract

from {module} import {name}

#: Further arguments make the method small, such as ``weight=0.5``.
CASE = case({name}{case})


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

STREAM_TEST = """

def test_what_is_served_comes_before_what_is_learned(tmp_path: Path) -> None:
    contract.check_first_served(CASE, tmp_path)
    contract.check_served_before_step(CASE, tmp_path)


def test_steps_that_move_nothing_and_a_return_to_the_start(tmp_path: Path) -> None:
    contract.check_no_row_counts(CASE, tmp_path)
    contract.check_restart(CASE, tmp_path)


def test_batches_of_one(tmp_path: Path) -> None:
    contract.check_batch_of_one(CASE, tmp_path)
"""


class Kind(NamedTuple):
    """What a method for one kind of problem says of it.

    Attributes:
        words: what stands in its text for each name in braces.
        command: arguments of ``dafw fit`` behind the model's.
    """

    words: dict[str, str]
    command: str


def _dense(kind: str, problem: str, network: str, outputs: str, supervised: str) -> Kind:
    words = {
        "imports": f"from dafw.problems import {outputs}, NetworkBase",
        "loss": f"{supervised} + weight * ||mean(f_s) - mean(f_t)||^2. f is the mean of an image's feature\n"
        "    map, (n, d), and the means are over the images of each domain.",
        "outputs": f":class:`dafw.problems.{outputs}`",
        "kinds": "    #: The kinds of problem that the terms make sense for.\n"
        f'    kinds: ClassVar[tuple[str, ...]] = ("{kind}",)\n',
        "network": "NetworkBase",
        "kind": outputs,
        "vectors": "vectors()",
        "case": f', kind="{kind}"',
    }
    toys = f"--data dafw.testing.toys.ToyData --data.kind {kind} --data.source a --data.target b --data.batch_size 8"
    return Kind(words, f"--model.network {network} --model.problem {problem} {toys}")


DIGITS = "--data Digits --data.source mnist --data.target mnistm"
KINDS = {
    "classification": Kind(
        {
            "imports": "from dafw.nn.network import Network\nfrom dafw.problems import Outputs",
            "loss": "CE(source) + weight * ||mean(f_s) - mean(f_t)||^2, features (n, d), means over the rows of each"
            " domain.",
            "outputs": "features (N, d) and logits (N, K)",
            "kinds": "",
            "network": "Network",
            "kind": "Outputs",
            "vectors": "features",
            "case": "",
        },
        DIGITS,
    ),
    "segmentation": _dense(
        "segmentation", "Segmentation", "dafw.nn.segmenter.TinySegmenter", "MaskOutputs", "CE(pixels of the source)"
    ),
    "detection": _dense(
        "detection", "Detection", "dafw.nn.detector.Detector", "BoxOutputs", "the detector's terms (source)"
    ),
}
#: The method that is written for each setting.
SETTINGS = {"adaptation": MEANS, "test-time": ENTROPY}
