"""DeYO: entropy falls on sure rows whose predictions change once the shapes in the image are destroyed."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import choose
from dafw.losses.entropy import entropy
from dafw.methods.base import Losses
from dafw.methods.test_time.base import Learns, StatisticsRule, TestTimeMethod
from dafw.methods.test_time.parts import LAST_PARTS, hold_parts
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.shape_destroying import as_floats, occlude, random_orders, shuffle_patches, shuffle_pixels
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, PositiveInt


class DeYO(TestTimeMethod):
    """Scale and shift of the normalisations, the last part of the network left out, learn from rows that see shapes.

    Loss: the mean over the rows that count of (exp(E0 - H_i) + exp(D_i)) H_i, where H_i is the entropy of row i,
    E0 = ``weight_margin`` ln K, and no gradient flows through the factor; logits (n, K). D_i = p_y(x_i) - p_y(x'_i) for
    the predicted class y of x_i; x'_i is the image with its shapes destroyed. A row counts if H_i < ``margin`` ln K and
    D_i > ``threshold``. If no row of any rank counts, there is no step. Batch normalisation normalises x' by the rows
    with low entropy alone. Means and statistics are over the rows of all ranks. Served are the logits before the step.
    Each step reads on the host whether a row counts.

    Lee et al., Entropy is not Enough for Test-Time Adaptation: From the Perspective of Disentangled Factors, ICLR 2024,
    https://arxiv.org/abs/2403.07366. The defaults are those of the authors' code for ImageNet-C; the paper takes a
    threshold of 0.3 on some data, as recalled.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        margin: of the entropy of a row that counts, as a share of ln K (authors' code: 0.5).
        weight_margin: E0, as a share of ln K (authors' code: 0.4).
        threshold: of D (authors' code: 0.2).
        destroy: how x' is made: by a random order of the ``patches`` of each image, by one random order of all
            ``pixels`` of the batch's images, or by an ``occlusion``: the middle of the image, half as high and wide,
            gets the mean colour of the image.
        patches: patches in each direction (authors' code: 4).
        skip: see :class:`~dafw.methods.test_time.sar.SAR`.
        optimizer: see :class:`~dafw.methods.base.Method` (authors' code: SGD with momentum 0.9).
        lr: learning rate (authors' code: 0.00025 for ResNet-50 with batches of 64).
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.

    Raises:
        UserError: if nothing is left that learns.
    """

    only_images = "shuffles the patches of images"
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "threshold": [0.1, 0.2, 0.3], "margin": [0.4, 0.5]}
    default_statistics: ClassVar[StatisticsRule] = "batch"
    default_learns: ClassVar[Learns] = "norm"
    backbone_passes: ClassVar[int] = 2
    host_reads: ClassVar[int] = 1

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        margin: NonNegativeFloat = 0.5,
        weight_margin: NonNegativeFloat = 0.4,
        threshold: float = 0.2,
        destroy: Literal["patches", "pixels", "occlusion"] = "patches",
        patches: PositiveInt = 4,
        skip: Sequence[str] = LAST_PARTS,
        optimizer: str = "momentum",
        lr: float = 2.5e-4,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        self.margin, self.weight_margin = (share * math.log(self.num_classes) for share in (margin, weight_margin))
        self.threshold, self.patches = threshold, patches
        self.destroy = choose("destroy", destroy, ("patches", "pixels", "occlusion"))
        hold_parts(self, skip)

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """The weighted entropy of the rows that count: (n, K) -> scalar."""
        entropies = entropy(outputs.logits)
        fixed = entropies.detach()
        sure = fixed < self.margin
        with torch.no_grad(), self.layout.untracked(), self.layout.temporarily(counted=sure):
            destroyed = self.forward_rows(self.destroyed(batch.x), 0, self.network).logits
        probabilities = full_precision(outputs.logits.detach()).softmax(1)
        predicted = probabilities.argmax(1, keepdim=True)
        falls = (probabilities - full_precision(destroyed).softmax(1)).gather(1, predicted)[:, 0]
        falls = torch.where(sure, falls, 0)  # without a sure row there are no statistics, and no number
        shares = self.used(sure & (falls > self.threshold))
        factor = (self.weight_margin - fixed).exp() + falls.exp()
        return {"entropy": (shares * factor * entropies).sum()}

    def destroyed(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) without their shapes, in floating point."""
        images = as_floats(images, self.network.shift.dtype)
        height, width = images.shape[-2:]
        if self.destroy == "occlusion":
            return occlude(images, (height // 4, width // 4), (height // 2, width // 2))
        clock = (self.data_seed, self.step)
        if self.destroy == "patches":
            patches = min(self.patches, height, width)
            return shuffle_patches(images, random_orders(*clock, len(images), patches**2), patches)
        return shuffle_pixels(images, random_orders(*clock, None, height * width)[0])
