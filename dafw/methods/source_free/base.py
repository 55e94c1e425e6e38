"""What source-free methods share: they start from a trained model, and no source sample is ever read."""

from typing import Any

from dafw.data.batch import Batch
from dafw.data.setting import Setting
from dafw.methods.base import Losses, Method

SOURCE_FREE = Setting("source-free", sees_source=False, starts_from_model=True)


class SourceFreeMethod(Method, abstract=True):
    """Adapts a trained network to unlabelled targets, which it sees as often as it likes. No source is loaded.

    The arguments are those of :class:`~dafw.methods.base.Method`. Without ``checkpoint`` the network needs a pretrained
    head (``head: pretrained``).
    """

    setting = SOURCE_FREE

    def adapt(self, target: Any, batch: Batch) -> Losses:
        """The weighted terms of one step.

        Args:
            target: outputs of the batch's n rows, all of them target.
            batch: their images, and where they come from; it has no labels.
        """
        raise NotImplementedError(f"{type(self).__name__} must define adapt(target, batch)")

    def losses(self, batch: Batch) -> Losses:
        """The terms of :meth:`adapt`, of one forward of the batch."""
        return self.adapt(self.forward_rows(batch.x, 0, sizes=batch.sizes), batch)
