"""The presets of the literature's recipes hold what was read in the code that their comments name."""

from typing import Any

import pytest
import yaml
from commands import CHECKOUT

from dafw.tables.reading import find_table, load_table

PRESETS = CHECKOUT / "experiments" / "image_folder"
#: Bottleneck and initial weights as in the code of MDD.
MDD_LAYERS = {"bottleneck_init": [0.005, 0.1], "head_init": [0.01, 0], "dropout": 0.5, "backbone_lr": 0.1}
LINEAR = {"bottleneck": 256, "bottleneck_norm": False, "bottleneck_relu": False, "backbone_lr": 0.1}
#: By preset, what its source has: arguments of the method, its network and the data, and the rate's decay a step.
READ: dict[str, dict[str, dict[str, Any]]] = {
    "afn_tllib": {
        "model": {"lr": 0.001, "momentum": 0.9, "parts": {"backbone": {"momentum": 0.0}}, "weight_decay": 0.0005},
        "network": {"bottleneck": 1000, "bottleneck_init": [0.01, 0], "head_init": [0.01, 0]},
        "data": {"augment": "crop", "fit": "squash", "steps_per_epoch": 500},
    },
    "bnm_deepda": {
        "model": {"optimizer": "momentum", "norm": "separate", "scale": "values", "weight": 1.0, "lr": 0.001},
        "network": {"backbone": "resnet50.tv_in1k", "bottleneck": 256, "bottleneck_norm": False, "backbone_lr": 0.1},
        "data": {"augment": "crop", "evaluate_scaled": True, "fit": "squash", "steps_per_epoch": 300},
        "decay": {"alpha": 0.0003, "power": 0.75, "per": "step"},
    },
    "dan_tllib": {
        "model": {"lr": 0.003, "norm": "separate", "linear": True},
        "network": {"bottleneck": 256, "bottleneck_norm": False, "dropout": 0.5},
        "decay": {"alpha": 0.0003, "power": 0.75, "per": "step"},
    },
    "mcd_tllib": {"model": {"parts": {"backbone": {"momentum": 0.0}}, "momentum": 0.9, "lr": 0.001}},
    "mdd_tllib": {
        "model": {"margin": 4.0, "lr": 0.004},
        "network": {"bottleneck": 1024, "head_width": 1024, **MDD_LAYERS},
        "decay": {"alpha": 0.0002, "power": 0.75, "per": "step"},
    },
    "mdd": {
        "model": {"margin": 4.0, "lr": 0.004, "ramp_steps": 1000, "ramp_height": 0.1, "weight_decay": 0.0005},
        "network": {"bottleneck": 1024, "head_width": 1024, **MDD_LAYERS},
        "decay": {"alpha": 0.0002, "power": 0.75, "per": "step"},
    },
    "mdd_office_home": {
        "model": {"margin": 2.0, "lr": 0.004, "ramp_steps": 1000, "ramp_height": 0.1, "weight_decay": 0.0005},
        "network": {"bottleneck": 2048, "head_width": 2048, **MDD_LAYERS},
        "decay": {"alpha": 0.0002, "power": 0.75, "per": "step"},
    },
    "cdan": {
        "model": {"critic_dropout": 0.5, "weight_decay": 0.001, "lr": 0.01, "norm": "separate", "ramp_steps": 10000},
        "network": LINEAR,
        "data": {"batch_size": 36},
        "decay": {"alpha": 0.001, "power": 0.75, "per": "step"},
    },
    "pada": {
        "model": {"critic_dropout": 0.5, "weight_decay": 0.0005, "lr": 0.01, "mode": "authors", "ramp_steps": 10000},
        "network": {**LINEAR, "bottleneck_init": [0.005, 0], "head_init": [0.01, 0]},
        "data": {"batch_size": 36},
        "decay": {"alpha": 0.001, "power": 0.75, "per": "step"},
    },
    "uan": {
        "model": {"threshold": -0.5, "lr": 0.01, "ramp_steps": 10000},
        "network": LINEAR,
        "data": {"augment": "crop"},
        "decay": {"alpha": 0.001, "power": 0.75, "per": "step"},
    },
}


def arguments(name: str) -> dict[str, dict[str, Any]]:
    """The parts of a preset that :data:`READ` has."""
    config = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    model = config["model"]["init_args"]
    decay = model.get("schedule", {}).get("init_args", {})
    return {
        "model": model,
        "network": model.get("network", {}).get("init_args", {}),
        "data": config["data"]["init_args"],
        "decay": decay,
    }


@pytest.mark.parametrize("name", READ)
def test_a_preset_holds_what_was_read(name: str) -> None:
    found = arguments(name)
    for part, expected in READ[name].items():
        assert {key: found[part].get(key) for key in expected} == expected, part


def test_the_backbone_of_afn_has_the_rate_of_the_new_layers() -> None:
    assert "backbone_lr" not in arguments("afn_tllib")["network"]


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_of_image_folders_train_on_the_whole_source(path: Any) -> None:
    data = arguments(path.stem)["data"]
    if path.stem.startswith("shot_"):  # its authors train on nine tenths
        assert (data["transductive"], data["split"]) == (True, [0.9, 0.05, 0.05])
        return
    assert data["protocol"] == "office"
    assert "transductive" not in data


@pytest.mark.parametrize("table", ["office31", "office_home"])
@pytest.mark.parametrize("preset", ["afn_tllib", "dan_tllib", "mdd_tllib"])
def test_a_table_has_the_recipe_of_the_preset(table: str, preset: str) -> None:
    method = preset.split("_")[0].upper()
    (row,) = [row for row in load_table(find_table(table)).rows if row.name == method]
    model, data = row.config["model"]["init_args"], row.config["data"]["init_args"]
    held = arguments(preset)
    wider = {"bottleneck", "head_width"} if table == "office_home" else set()
    network = {key: value for key, value in held["network"].items() if key not in wider}
    assert {key: model["network"]["init_args"].get(key) for key in {"backbone_lr", *network}} == {
        "backbone_lr": 1.0
    } | network
    shared = model.keys() & held["model"].keys() - {"network", "schedule"}
    assert {key: model[key] for key in shared} == {key: held["model"][key] for key in shared}
    assert shared >= {"lr", "weight_decay", "momentum", "optimizer"}
    assert (data["protocol"], data.get("augment")) == ("office", held["data"].get("augment"))
