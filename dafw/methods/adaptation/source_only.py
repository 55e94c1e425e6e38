"""Source only: the baseline that ignores the target."""

from typing import Any, ClassVar

from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.padding import join_padded
from dafw.errors import UserError
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.problems import NetworkBase


class SourceOnly(AdaptationMethod):
    """Trains on the labelled source alone; the first row of every table.

    Loss: CE(source). With ``forward_target`` the target's images pass through the network as well, so BatchNorm sees
    them as under an adaptation method. This is the control of those methods, and it does adapt (its statistics). With
    ``forward_views`` additional views of the target's images pass through it too, as under a method that uses them. The
    upper bound "train on target" is this method with the datamodule's ``oracle: true``, which takes the labels of the
    target's training split for the source's; tables mark such a row.

    References: the baseline of Ganin et al., JMLR 17 (2016), section 5.2, https://arxiv.org/abs/1505.07818.

    Args:
        network: images (N, C, H, W) to outputs of any kind.
        forward_target: pass target images through the network without learning from them.
        forward_views: names of additional augmented views of the target's images to pass through it too.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if ``norm`` is ``domain_specific`` and no target image passes through the network.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-3, 1e-1), "weight_decay": (1e-6, 1e-2)}

    def __init__(  # type: ignore[no-untyped-def]
        self, network: NetworkBase, *, forward_target: bool = False, forward_views: list[str] | None = None, **base
    ) -> None:
        super().__init__(network, **base)
        if self.norm == "domain_specific" and not forward_target and not forward_views:
            raise UserError(
                "model.norm is domain_specific, but no target image passes through the network in training, so that the"
                " target's batch norms would never be trained: take joint, or model.forward_target"
            )
        self.forward_target = forward_target
        self.views = tuple(forward_views or ())

    def losses(self, batch: Batch) -> Losses:
        """The supervised loss, from a forward of the source rows (or of all rows)."""
        if self.forward_target and not self.views:
            return super().losses(batch)
        x, sizes = self._passed(batch)
        joint = self.forward_rows(x, batch.num_source, sizes=sizes)
        return self.problem.terms(joint[: batch.num_source], batch.y)

    def statistics_pass(self, batch: Batch) -> None:
        """The source rows, or all rows that a training step passes."""
        x, sizes = self._passed(batch)
        self.forward_rows(x, batch.num_source, sizes=sizes)

    def _passed(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The rows that pass through the network, and their sizes within their padding."""
        if self.views:
            target = slice(batch.num_source, None)
            parts = [(batch.x, batch.sizes)]
            for name in self.views:
                sizes = batch.view_sizes.get(name)
                parts.append((batch.views[name][target], None if sizes is None else sizes[target]))
            return join_padded(parts)
        rows = slice(None if self.forward_target else batch.num_source)
        return batch.x[rows], None if batch.sizes is None else batch.sizes[rows]

    def adapt(self, source: Any, target: Any, joint: Any) -> Losses:
        """No terms."""
        return {}
