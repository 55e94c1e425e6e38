"""The numbers by which an annotation file calls images and classes."""

from collections.abc import Mapping
from typing import NamedTuple


class Numbers(NamedTuple):
    """Numbers, or names, of one domain, as in COCO's ``image_id`` and ``category_id``.

    Attributes:
        images: by the name of a sample.
        classes: by the name of a class.
    """

    images: Mapping[str, int | str]
    classes: Mapping[str, int | str]
