"""Losses of NSA: how far a disturbed image's features and predictions are from those of the image itself.

Zhou et al., ICCV 2023, https://arxiv.org/abs/2308.08182; what the paper leaves open was read in the authors' code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.losses.maps import mean_over_places
from dafw.nn.distributed import gather_unequal
from dafw.nn.precision import full_precision

#: Distance of two positions that may be contrasted (authors: 7).
GRID = 7


def contrast(positive: Tensor, negative: Tensor, counts: Tensor | None = None) -> Tensor:
    """The mean over negatives m of -log(e^p / (e^p + 2 e^m)) of each row; one term for each negative, no joint softmax.

    The authors add 1e-6 within the logarithm; here it is exact.

    Args:
        positive: similarity (n, 1) of a row to its own class.
        negative: similarities (n, m) to others.
        counts: (n, m) bool, the negatives that count; ``None``: all do.

    Returns:
        (n,), 0 for a row without negatives.
    """
    terms = (2 * (negative - positive).exp()).log1p()
    if counts is None:
        return terms.mean(1)
    return terms.masked_fill(~counts, 0).sum(1) / counts.sum(1).clamp_min(1)


def class_contrast(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    background: float = 0.1,
    hardest: int = 2,
    counts: Tensor | None = None,
) -> Tensor:
    """Rows of a disturbed image should resemble the teacher's rows of their class, and those of other classes less.

    The mean over rows i with a class of contrast(a, b) + background * contrast(a, c): a is the mean cosine similarity
    of row i and the teacher's rows of its class, b that of each other class that is present, and c the largest
    similarities to the teacher's rows of the background. The rows of all ranks count.

    Args:
        student: (R, d).
        teacher: (R, d); no gradient flows into them.
        labels: (R,) int64, 0 for the background, 1 to K for the classes and -1 for what does not count.
        num_classes: K.
        background: weight of the second term (authors: 0.1).
        hardest: number of background rows that count for each row (authors: 2).
        counts: (R,) bool, the student's rows that count; ``None``: all do.

    Returns:
        A scalar, 0 if no row has a class.
    """
    rows = F.normalize(full_precision(student), dim=1, eps=1e-10)
    others = gather_unequal(F.normalize(full_precision(teacher.detach()), dim=1, eps=1e-10))
    classes = gather_unequal(labels)
    number = torch.arange(num_classes + 1, device=labels.device)
    one_hot = (classes[:, None] == number).to(rows.dtype)
    members = one_hot.sum(0)
    centres = one_hot.mT @ others / members.clamp_min(1)[:, None]
    to_centres = rows @ centres.mT
    own = to_centres.gather(1, labels.clamp_min(0)[:, None])
    negatives = (members > 0) & (number > 0) & (number != labels[:, None])
    to_background = (rows @ others.mT).masked_fill(classes != 0, -torch.inf)
    largest = to_background.topk(min(hardest, to_background.shape[1]), 1).values
    found = largest > -torch.inf
    largest = largest.masked_fill(~found, 0)
    losses = contrast(own, to_centres, negatives) + background * contrast(own, largest, found)
    return mean_over_places(losses, labels > 0 if counts is None else counts & (labels > 0))


def row_distance(
    student: Tensor, teacher: Tensor, foreground: Tensor, background: Tensor, share: float = 0.0
) -> Tensor:
    """The mean squared difference of the foreground's rows, and ``share`` times that of the background's.

    Args:
        student: (R, d).
        teacher: (R, d); no gradient flows into them.
        foreground: (R,) bool, the rows of objects that count.
        background: (R,) bool, the other rows that count.
        share: weight of the background.

    Returns:
        A scalar.
    """
    squares = (full_precision(student) - full_precision(teacher.detach())).square().mean(1)
    loss = mean_over_places(squares, foreground)
    return loss + share * mean_over_places(squares, background) if share else loss


def mirrored_deltas(deltas: Tensor, mirrored: Tensor) -> Tensor:
    """Moves of boxes (R, 4 m) as they are in an image that is mirrored: the first of each four changes its sign.

    Args:
        deltas: dx, dy, dw, dh of each class, relative to the size of the box.
        mirrored: (R,) bool, whether the row's image is mirrored.
    """
    sign = torch.where(mirrored, -1.0, 1.0).to(deltas.dtype)[:, None]
    parts = deltas.view(len(deltas), -1, 4)
    return torch.cat([sign[..., None] * parts[..., :1], parts[..., 1:]], 2).view_as(deltas)


def texture(features: Tensor) -> Tensor:
    """How much a feature map differs from its 5 x 5 mean, relative to that mean: (n, c, h, w) -> (n, h, w)."""
    features = full_precision(features)
    mean = F.avg_pool2d(features, 5, 1, 2)
    return (features - mean).abs().mean(1) / (mean.abs().mean(1) + 1e-5)


def texture_classes(
    z: Tensor, weak: float = 1.3, strong: float = 1.6, lowest: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """The positions with a clear texture: 2 where it is strong, 1 where it is weak, 0 elsewhere.

    A position counts if it is the largest of the 7 x 7 around it. Its texture is weak above ``weak`` times the image's
    mean, both measured from the lowest value. The authors take the lowest value of the whole batch. Here it is each
    image's own, so that no image depends on others.

    Args:
        z: (n, h, w), see :func:`texture`.
        weak: see above (authors: 1.3).
        strong: see above (authors: 1.6).
        lowest: from which value the texture is measured, (n, 1, 1); each image's own lowest if ``None``.
        valid: (n, h, w) bool, the positions that belong to the images; ``None``: all do.

    Returns:
        (n, h, w) int64.
    """
    inside = torch.ones_like(z, dtype=torch.bool) if valid is None else valid
    if lowest is None:
        lowest = z.masked_fill(~inside, torch.inf).amin((1, 2), keepdim=True)
    above = (z - lowest).masked_fill(~inside, 0)
    mean = above.sum((1, 2), keepdim=True) / inside.sum((1, 2), keepdim=True).clamp_min(1)
    peak = above == F.max_pool2d(above[:, None], 7, 1, 3)[:, 0]
    return ((above > weak * mean) & peak & inside).long() + ((above > strong * mean) & peak & inside).long()


def contrasted_positions(labels: Tensor, strong: Tensor, num_classes: int, inside: Tensor) -> Tensor:
    """The classes of the positions of a feature map that are contrasted: every 7th in both directions, if it is clear.

    A position has the most frequent class of the 5 x 5 around it, if two of them have this class or more than have
    none; otherwise it is of the background. An object's position counts if more than 5 of the 3 x 3 around it have its
    class, and if the 7 x 7 around it have no more of its class than the 5 x 5: it is the middle of a small object. A
    position of the background counts if one of the 3 x 3 around it has strong texture.

    Args:
        labels: (n, h, w) int64, 0 for the background and 1 to K for the classes.
        strong: (n, h, w) bool, the positions of strong texture.
        num_classes: K.
        inside: (n, h, w) bool, the positions that both images show.

    Returns:
        (n, ceil(h / 7), ceil(w / 7)) int64; -1 for a position that does not count.
    """
    number = torch.arange(num_classes + 1, device=labels.device)[:, None, None]
    one_hot = ((labels[:, None] == number) & inside[:, None]).float()

    def around(maps: Tensor, side: int) -> Tensor:
        return F.avg_pool2d(maps, side, GRID, side // 2, divisor_override=1)

    small, middle, large = (around(one_hot, side) for side in (3, 5, 7))
    most, which = middle[:, 1:].max(1)
    label = torch.where((most > 1.5) | (most > middle[:, 0]), which + 1, 0)

    def of_label(counts: Tensor) -> Tensor:
        return counts.gather(1, label[:, None])[:, 0]

    clear = (of_label(large) - of_label(middle) < 0.5) & (of_label(small) > 5.5)
    clear |= (label == 0) & (around(strong[:, None].float(), 3)[:, 0] > 0.5)
    return torch.where(clear & inside[:, ::GRID, ::GRID], label, -1)


def map_distance(
    student: Tensor, teacher: Tensor, counts: Tensor, classes: Tensor, weights: tuple[float, ...]
) -> Tensor:
    """The squared difference of two feature maps, averaged over each class of positions by itself.

    Args:
        student: (n, c, h, w).
        teacher: (n, c, h, w); no gradient flows into them.
        counts: (n, h, w) bool, the positions that count.
        classes: (n, h, w) int64, the class of each position.
        weights: of each class.

    Returns:
        A scalar.
    """
    squares = (full_precision(student) - full_precision(teacher.detach())).square().mean(1)
    terms = [weight * mean_over_places(squares, counts & (classes == c)) for c, weight in enumerate(weights) if weight]
    return torch.stack(terms).sum()


def standardised(maps: Tensor, inside: Tensor) -> Tensor:
    """Maps (n, c, h, w) whose channels have mean 0 and variance 1 over an image's positions ``inside`` (n, h, w)."""
    maps, mask = full_precision(maps), inside[:, None]
    count = mask.sum((2, 3), keepdim=True).clamp_min(1)
    mean = maps.masked_fill(~mask, 0).sum((2, 3), keepdim=True) / count
    centred = (maps - mean).masked_fill(~mask, 0)
    variance = centred.square().sum((2, 3), keepdim=True) / count
    return centred / (variance + 1e-5).sqrt()
