"""Loading images with boxes: the training loader of CocoDomains, whose images come with a weak and a strong view.

JPEG files are parts of scikit-learn's two photographs, and boxes are at random. The images come from the cache, which
the warm-up reads once. An image counts once, with both of its views.
"""

import json
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
from harness import Measure, interleave, timed
from loader import exhaust, seconds_of
from PIL import Image
from sklearn.datasets import load_sample_images

from dafw.data.setting import DataRequest
from datamodules import CocoDomains

#: Images a second that one worker must give.
LEAST = 80.0


def write_domain(root: Path, name: str, count: int, size: tuple[int, int], boxes: int = 8) -> None:
    """Images of so many pixels (height, width), with boxes of two classes in COCO's format."""
    rng = np.random.default_rng(len(name))
    (root / name).mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        photograph = Image.fromarray(load_sample_images().images[number % 2])
        across, down = (int(rng.integers(0, side // 4)) for side in photograph.size)
        part = photograph.crop((across, down, photograph.width, photograph.height))
        part.resize((size[1], size[0])).save(root / name / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": size[0], "width": size[1]})
        for _ in range(boxes):
            height, width = (int(rng.integers(side // 8, side // 2)) for side in size)
            top, left = int(rng.integers(0, size[0] - height)), int(rng.integers(0, size[1] - width))
            one = {"id": len(annotations), "image_id": number, "category_id": len(annotations) % 2}
            annotations.append({**one, "bbox": [left, top, width, height]})
    categories = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    given = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(given))


def measure_boxes(quick: bool = False) -> list[Measure]:
    """Images a second with one worker."""
    size, files, batch, steps, rounds = ((48, 64), 16, 2, 2, 1) if quick else ((480, 640), 120, 8, 10, 5)
    with TemporaryDirectory() as name, patch.dict(os.environ, DAFW_CACHE=f"{name}/cache"):
        root = Path(name) / "boxes"
        for domain in ("one", "two"):
            write_domain(root, domain, files, size)
        options = {"split": (1.0, 0.0, 0.0), "batch_size": batch, "steps_per_epoch": steps, "num_workers": 1}
        data = CocoDomains("one", "two", root=str(root), cache=True, augment="weak", **options)
        data.default_request = DataRequest(views=("strong",), maps=True)
        data.setup("fit")
        run = partial(seconds_of, partial(exhaust, data.train_dataloader(), steps))
        taken = interleave({"dafw": run}, rounds, f"loader, boxes on {size[1]}x{size[0]}, s")["dafw"]
    title = f"boxes on {size[1]}x{size[0]}, weak and strong view, cached, 1 worker"
    return [timed(title, "/s", [2 * batch * steps / seconds for seconds in taken], limit=LEAST, at_most=False)]
