"""Batches of the images that ``dafw predict --images`` names."""

from pathlib import Path

from PIL import Image

from dafw.data.preparing import Whole
from dafw.run.images import ImageBatches, find_images


def test_a_batch_holds_images_of_one_size(tmp_path: Path) -> None:
    """No image is padded, unless the method looks at all of a batch in a random order."""
    for index, size in enumerate(((5, 4), (5, 6), (5, 4))):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    paths = find_images([str(tmp_path)])
    batches = list(ImageBatches(paths, Whole(None), 8, None))
    assert [one.index.tolist() for one in batches] == [[0, 2], [1]]
    assert all(one.sizes is None for one in batches)
    (whole,) = ImageBatches(paths, Whole(None), 8, (0, "images"))
    assert whole.sizes is not None
    assert sorted(whole.index.tolist()) == [0, 1, 2]
