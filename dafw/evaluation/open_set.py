"""Classes that only the target has: which samples are rejected, and what fits the threshold."""

import logging
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.nn.distributed import gather_unequal
from dafw.nn.modes import evaluation_mode

if TYPE_CHECKING:
    from dafw.evaluation.evaluated import Evaluated
    from dafw.evaluation.rejection import Rejection

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
"""What a rejected sample is called where a class's name stands."""


class OpenSet:
    """Rejects samples of no known class, by the method's own rule or by ``model.rejection``.

    Args:
        method: the method that is evaluated.
    """

    def __init__(self, method: "Evaluated") -> None:
        self.method = method
        self.known_logits: list[Tensor] = []

    @property
    def rejection(self) -> "Rejection | None":
        """The rule that the configuration gives."""
        return self.method.rejection

    @property
    def rejects(self) -> bool:
        """Whether some samples may be held to be of no known class."""
        return self.method.rejects_itself or self.rejection is not None

    @property
    def has_unknown(self) -> bool:
        """Whether the target has classes of its own."""
        data = self.method.datamodule
        return data is not None and bool(data.has_unknown)

    @property
    def may_reject(self) -> bool:
        """Whether a sample may count as one of no known class, by the method or by its label."""
        return self.rejects or self.has_unknown

    @property
    def is_fitting(self) -> bool:
        """Whether the source's validation samples fit the threshold, since none was given."""
        return self.rejection is not None and self.rejection.threshold is None

    def check(self) -> None:
        """Compares what the method can say with the classes of the target.

        Raises:
            UserError: if the target has classes of its own and the method rejects nothing, if a threshold is to be
                fitted in a setting without a source, or if a class of the source is called as rejected samples are.
        """
        name, data = type(self.method).__name__, self.method.datamodule
        if self.rejects and data is not None and UNKNOWN in data.known_names:
            raise UserError(
                f'a class of the source is called "{UNKNOWN}", which is what a sample that {name} rejects is called: '
                "give the class another name, or leave it out (data.label_sets)"
            )
        if self.is_fitting and not self.method.setting.sees_source:
            raise UserError(
                f"a {self.method.setting.name} run has no sample of the source to fit a threshold to: give "
                "model.rejection.threshold"
            )
        if not self.has_unknown:
            if self.rejects and data is not None and data.tested_targets:
                log.warning("the target has no class of its own: what %s rejects is a mistake", name)
        elif not self.rejects:
            raise UserError(
                f"the target has classes that the source lacks (data.label_sets), and {name} rejects nothing: give "
                "model.rejection, such as Entropy"
            )

    def check_threshold(self) -> None:
        """Asks for a threshold.

        Raises:
            UserError: if ``model.rejection`` has none, neither given nor fitted.
        """
        if self.rejection is not None and self.rejection.needs_fit:
            raise UserError("model.rejection has no threshold, and no source's validation has fitted one: give it")

    def margins(self, outputs: object) -> tuple[Tensor, ...]:
        """The method's margins (N,), as an extra argument for a problem; nothing if the method never rejects.

        A problem that knows no rejection need not take the argument.
        """
        unknown = self.method.unknown_scores(outputs)
        return () if unknown is None else (unknown,)

    def start(self) -> None:
        """Forgets the logits of an earlier evaluation."""
        self.known_logits = []

    def note_source(self, outputs: Any) -> None:
        """Keeps the logits (n, K) of the source's validation samples, if the threshold is fitted to them."""
        if self.is_fitting:
            self.known_logits.append(outputs.logits)

    def fit_noted(self) -> None:
        """Fits the threshold to the logits kept so far. They come before those of any target."""
        if self.known_logits:
            found, self.known_logits = self.known_logits, []
            self.fit(found)

    def fit(self, found: list[Tensor]) -> None:
        """Fits the threshold to logits (n, K) of this rank's source validation samples."""
        assert self.rejection is not None
        self.rejection.fit(gather_unequal(torch.cat(found)))

    @torch.no_grad()
    def fit_to_final_weights(self) -> None:
        """Fits a threshold that was not given to the weights as the training leaves them.

        The last validation may have seen earlier weights, or the weights before an average replaced them.
        """
        method, data = self.method, self.method.datamodule
        if data is None or not self.is_fitting or not data.sources:
            return
        found, plugin = [], method.trainer.precision_plugin
        with evaluation_mode(cast(nn.Module, method)), plugin.forward_context():
            for name in data.sources:
                for batch in data.evaluation_loader(data.domain(name, "val").unlabelled()):
                    batch = method.trainer.strategy.batch_to_device(plugin.convert_input(batch))
                    found.append(method.evaluate(batch, True).logits)
        self.fit(found)
