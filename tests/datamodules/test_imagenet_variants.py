"""ImageNet's variants and DomainNet-126, in generated folders of their layouts."""

from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dafw.data.imagenet import classes_of, rows_of, synsets
from dafw.data.trained import TrainedModel, made_for
from dafw.errors import UserError
from dafw.nn.network import Network
from datamodules import DomainNet126, ImageNetVariants

SMALL: dict[str, Any] = {"size": 8, "batch_size": 2}


def fill(folder: Path, count: int = 2, size: tuple[int, int] = (8, 8)) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def variants(root: Path, target: Any, **options: Any) -> ImageNetVariants:
    """As a method sees them that starts from weights alone, without files of the source."""
    with made_for(TrainedModel(lambda: ())):
        return ImageNetVariants(target=target, root=str(root), **{**SMALL, **options})


@pytest.mark.parametrize("home", ["", "imagenet-c", "noise", "imagenet-c/noise"])
def test_imagenet_c_with_and_without_folders_of_groups(tmp_path: Path, home: str) -> None:
    for severity in (3, 5):
        for name in ("n01440764", "n15075141"):
            fill(tmp_path / home / "shot_noise" / str(severity) / name, severity)
    data = variants(tmp_path, ["shot_noise_5", "shot_noise_3"])
    assert (data.num_classes, data.resize, data.task) == (1000, 8, "imagenet->shot_noise_5,shot_noise_3")
    found = data.load("shot_noise_5", "test")
    assert (len(found), sorted(set(found.labels))) == (10, [0, 999])  # type: ignore[arg-type]
    assert len(data.load("shot_noise_3", "test")) == 6
    image = Image.open(tmp_path / home / "shot_noise" / "5" / "n01440764" / "0.png")
    assert torch.equal(found.inputs[0], torch.from_numpy(np.array(image)).permute(2, 0, 1)), "it is not scaled"


def test_the_command_line_scores_all_images_of_a_target_too(tmp_path: Path) -> None:
    """It gives every argument, with the default that it finds in a signature."""
    fill(tmp_path / "fog" / "5" / "n01440764", 20)
    data = variants(tmp_path, "fog_5", transductive=signature(ImageNetVariants).parameters["transductive"].default)
    assert len(data.load("fog_5", "test")) == 20


def test_variants_with_two_hundred_classes(tmp_path: Path) -> None:
    fill(tmp_path / "imagenet-r" / "n01443537", size=(20, 16))
    fill(tmp_path / "sketch" / "n01443537", size=(20, 16))
    data = variants(tmp_path, "imagenet_r")
    assert (data.num_classes, data.class_names[0], data.resize) == (200, "n01443537", 9)
    assert data.load("imagenet_r", "test").inputs[0].shape == (3, 8, 8)
    assert variants(tmp_path, "imagenet_sketch").load("imagenet_sketch", "test").labels[0] == 1  # type: ignore[index]
    assert [len(classes_of(name)) for name in ("imagenet_r", "imagenet_a", "imagenet_sketch")] == [200, 200, 1000]
    assert synsets()[rows_of("imagenet_r")[0]] == "n01443537"
    with pytest.raises(UserError, match="imagenet and imagenet_r have other classes: test each by itself"):
        variants(tmp_path, ["imagenet_r", "imagenet_sketch"])


def test_a_classifier_keeps_the_outputs_of_a_variant(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("test_resnet", num_classes=1000)
    torch.save(model.state_dict(), tmp_path / "model.th")
    options: dict[str, Any] = {"weights": str(tmp_path / "model.th"), "head": "pretrained"}
    network = Network("test_resnet", **options, head_rows="imagenet_a")
    network.set_classes(200)
    assert torch.equal(network.label_head().weight, model.fc.weight[list(rows_of("imagenet_a"))])  # type: ignore[arg-type]
    few = Network("test_resnet", **options, head_rows=[7, 3])
    few.set_classes(2)
    assert torch.equal(few.label_head().bias, model.fc.bias[[7, 3]])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="head_rows names output 1000 of a classifier of 1000 classes"):
        Network("test_resnet", **options, head_rows=[1000])
    with pytest.raises(UserError, match="head_rows are of a classifier that is kept"):
        Network("test_resnet", head_rows=[1])


def test_what_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "fog" / "1" / "n01440764")
    for target, said in (
        ("fog_2", "holds no folder fog/2 with the images of fog_2"),
        ("imagenet_s", 'unknown corruption "imagenet_s"'),
        ("fog_9", "fog has the severities 1 to 5"),
        (["fog_1", "imagenet_sketch"], "give data.resize"),
        ("imagenet_a", "holds no folder imagenet-a or imagenet_a"),
    ):
        with pytest.raises(UserError, match=said):
            variants(tmp_path, target)
    with pytest.raises(UserError, match="holds no folder val or"):
        ImageNetVariants(target="fog_1", root=str(tmp_path), **SMALL)
    fill(tmp_path / "imagenet-a" / "n01440764")
    with pytest.raises(UserError, match='folder "n01440764" for imagenet_a, which is none of its classes'):
        variants(tmp_path, "imagenet_a")


def test_domainnet_126_is_what_its_lists_name(tmp_path: Path) -> None:
    for domain in ("real", "sketch"):
        for name in ("axe", "zigzag"):
            fill(tmp_path / domain / name, 4)
        text = "".join(f"{domain}/axe/{index}.png 5\n" for index in range(3))
        (tmp_path / f"{domain}_list.txt").write_text(text)
    options: dict[str, Any] = {"root": str(tmp_path), "size": 8, "resize": 10, "protocol": "office"}
    data = DomainNet126("real", "sketch", **options)
    assert data.class_counts() == {"real": {"axe": 3}, "sketch": {"axe": 3}}
    (tmp_path / "sketch_list.txt").unlink()
    with pytest.raises(UserError, match=r"lacks sketch_list\.txt, which says which images of DomainNet belong to"):
        DomainNet126("real", "sketch", **options)
