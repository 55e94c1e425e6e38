"""Discrepancy of two domains, class by class: within each class and between different classes."""

import torch
from torch import Tensor

from dafw.losses.mmd import squared_distances
from dafw.nn.distributed import gather_rows

#: Bandwidths of the kernels, as multiples of the mean squared distance.
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
LEAST, MOST = 1e-5, 1e5


def class_discrepancies(source: Tensor, target: Tensor, count: int) -> Tensor:
    """Squared MMD (biased, quadratic time) between each source class and each target class.

    Entry (i, j) is mean k(s, s') + mean k(t, t') - 2 mean k(s, t) over the source rows s of class i and the target rows
    t of class j. The kernel is a sum of Gaussians exp(-d / (b g_ij)) over five bandwidths b. g_ij is the mean squared
    distance over all pairs of different rows of the two sets; no gradient flows into it. As in DCC's code b g_ij is at
    least 1e-5, and the ratio d / (b g_ij) is clamped to [1e-5, 1e5]; so the distance of a row to itself is not quite 0.

    Args:
        source: (C * P, d) features grouped by class, P rows per class; on several ranks this rank's rows. The rows of
            all ranks are gathered.
        target: (C * P, d) features, grouped in the same way.
        count: C, the number of classes over all ranks.

    Returns:
        (C, C), not negative except for rounding.

    Raises:
        ValueError: if the two differ in size or ``count`` does not divide it.
    """
    source, target = gather_rows(source), gather_rows(target)
    rows, rest = divmod(len(source), count)
    if source.shape != target.shape or rest:
        raise ValueError(
            f"{count} classes of equal size cannot be in {len(source)} source and {len(target)} target rows"
        )
    blocks = squared_distances(torch.cat([source, target])).view(2, count, rows, 2, count, rows)
    inside = [blocks[side, :, :, side].diagonal(dim1=0, dim2=2).movedim(2, 0) for side in (0, 1)]  # (C, P, P)
    source_blocks, target_blocks = inside[0][:, None], inside[1][None]
    across = blocks[0, :, :, 1].transpose(1, 2)  # (C, C, P, P)
    total = (source_blocks + target_blocks + 2 * across).detach().sum((2, 3), keepdim=True)
    scale = total / (4 * rows**2 - 2 * rows)

    def mean_kernel(distances: Tensor) -> Tensor:
        ratios = [(distances / (b * scale).clamp_min(LEAST)).clamp(LEAST, MOST) for b in BANDWIDTHS]
        return torch.stack([torch.exp(-ratio).mean((2, 3)) for ratio in ratios]).sum(0)

    return mean_kernel(source_blocks) + mean_kernel(target_blocks) - 2 * mean_kernel(across)


def contrastive_discrepancy(
    source: Tensor, target: Tensor, classes: Tensor, num_classes: Tensor | int | None = None
) -> tuple[Tensor, Tensor]:
    """The two parts of the contrastive domain discrepancy, intra - inter: Kang et al., CVPR 2019.

    https://arxiv.org/abs/1901.00976. Intra is the mean of :func:`class_discrepancies` over pairs of equal classes.
    Inter is the mean over pairs of different classes, 0 if there is one class only. A class may occur twice in a batch;
    its two groups are then not compared with each other.

    Args:
        source: (C * P, d) features grouped by class; on several ranks this rank's rows.
        target: (C * P, d) features, likewise.
        classes: (C,) class of each group, over all ranks.
        num_classes: divides the two sums by M and M (M - 1) instead, where M is this number. DCC's code does so with
            the number of classes that may be in a batch, and compares all pairs of groups, also of the same class.

    Returns:
        Intra and inter, scalars.
    """
    found = class_discrepancies(source, target, len(classes))
    groups = torch.arange(len(classes), device=found.device)
    names = classes if num_classes is None else groups
    different = (names[:, None] != names).to(found.dtype)
    intra, inter = found.diagonal().sum(), (found * different).sum()
    if num_classes is None:
        return intra / len(classes), inter / different.sum().clamp_min(1)
    number = torch.as_tensor(num_classes, device=found.device)
    return intra / number.clamp_min(1), torch.where(number > 1, inter / (number * (number - 1)).clamp_min(1), 0.0)
