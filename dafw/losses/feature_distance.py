"""The distance of a network's features from those of another one, at the places of some classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.data.padding import IGNORE
from dafw.losses.maps import mean_over_places
from dafw.nn.precision import full_precision


@torch.no_grad()
def majority_labels(labels: Tensor, grid: tuple[int, int], least_share: float, num_classes: int) -> Tensor:
    """The class of most pixels of each cell: masks (n, H, W) -> (n, h, w) int64.

    Hoyer et al., DAFormer, CVPR 2022, https://arxiv.org/abs/2111.14887, section 3.3. Pixels without a label count as a
    class of their own, whose cells have no label either.

    Args:
        labels: 255 where there is no label.
        grid: height h and width w of the feature map.
        least_share: a class must have this share of a cell; cells without such a class get 255.
        num_classes: K.
    """
    codes = torch.where(labels == IGNORE, num_classes, labels.long())
    found = torch.zeros(len(labels), num_classes + 1, *labels.shape[1:], device=labels.device)
    share, found = F.adaptive_avg_pool2d(found.scatter_(1, codes[:, None], 1.0), grid).max(1)
    return found.masked_fill((found == num_classes) | (share < least_share), IGNORE)


def feature_distance(features: Tensor, reference: Tensor, where: Tensor) -> Tensor:
    """The mean Euclidean distance of two feature maps over some cells of all ranks; 0 without any.

    Args:
        features: (n, d, h, w).
        reference: (n, d, h, w), without a gradient.
        where: (n, h, w) bool, the cells that count.
    """
    distance = torch.linalg.vector_norm(full_precision(features - reference), dim=1)
    return mean_over_places(distance, where)
