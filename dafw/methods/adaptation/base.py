"""What adaptation methods share: labelled source and unlabelled target in one batch."""

from typing import Any

from dafw.data.batch import Batch
from dafw.data.setting import Setting
from dafw.methods.base import Losses, Method

ADAPTATION = Setting("adaptation")


class AdaptationMethod(Method, abstract=True):
    """Labelled source, unlabelled target: one forward of both, the supervised loss, and the method's own terms."""

    setting = ADAPTATION

    def adapt(self, source: Any, target: Any, joint: Any) -> Losses:
        """Already weighted terms to add to the supervised loss.

        Args:
            source: outputs of the ``n_s`` labelled rows, a view of ``joint``.
            target: outputs of the ``n_t`` unlabelled rows, a view of ``joint``.
            joint: all outputs; ``joint.vectors()`` is (n_s + n_t, d), for classification the features themselves.
        """
        raise NotImplementedError(f"{type(self).__name__} must define adapt(source, target, joint)")

    def losses(self, batch: Batch) -> Losses:
        """Supervised loss of the source rows and the terms of :meth:`adapt`."""
        joint = self.forward_batch(batch)
        source, target = joint[: batch.num_source], joint[batch.num_source :]
        return {**self.problem.terms(source, batch.y), **self.adapt(source, target, joint)}
