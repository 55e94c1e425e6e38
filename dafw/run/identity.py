"""What makes one run another than a second one: the part of its configuration that determines its numbers."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from dafw.files import user_path

HASH_VERSION = 1
"""Part of every hash. Another number gives every run another directory."""
INCIDENTAL: dict[str, set[str]] = {
    "trainer": {"devices", "accelerator", "num_nodes", "strategy", "logger", "callbacks", "default_root_dir"}
    | {"enable_progress_bar", "enable_model_summary", "enable_checkpointing", "profiler", "log_every_n_steps"},
    "data": {"num_workers", "cache", "allow_outside_root"},
}
"""Keys that change where or how fast a run is made, and not its numbers."""
DATA_PATHS = ("root", "manifest", "images")
"""Keys of a datamodule that say where its files lie. A run is the same wherever that is."""
LATER: dict[str, dict[str, Any]] = {
    "model": {
        **{"target_statistics": False, "statistics_momentum": 0.1, "target_weight": 0.1, "warmup_samples": 0},
        **{"position_weight": 0.0, "label_weights": "alike"},
    },
    "data": {"evaluate_scaled": False, "stream": "continual"},
    "network": {"bottleneck_norm": True},
    "problem": {"ap": "coco", "evidence_score": 0.5},
}
"""Arguments that came when there were runs already, with the values that stand for their absence."""
ONLOOKERS = {"ProgressBar", "RichProgressBar", "TQDMProgressBar", "ModelSummary", "RichModelSummary"}
ONLOOKERS |= {"DeviceStatsMonitor", "LearningRateMonitor", "ThroughputMonitor", "ModelCheckpoint"}
"""Lightning's callbacks that change no number. Any other callback may, so it is part of the hash."""
LIGHTNING = ("", "pytorch_lightning", "lightning")
"""Packages whose callbacks are Lightning's. The empty name stands for a class without a path."""
ORACLE = "oracle/"
"""How the name of a value begins that is computed with target labels."""


def config_hash(config: dict[str, Any]) -> str:
    """Eight hexadecimal digits that stand for a configuration without its :data:`INCIDENTAL` keys.

    Of the folder of the data and of a manifest the last name counts, however the path is spelled and wherever it is. If
    another data set has the same names, the samples that a checkpoint was trained on tell them apart.
    """
    parts = ("seed_everything", "model", "data", "trainer")
    kept = json.loads(json.dumps({key: config[key] for key in parts if config.get(key) is not None}))
    callbacks = changing_callbacks(config)
    arguments = (kept.get("model") or {}).get("init_args") or {}
    if isinstance(arguments.get("checkpoint"), str):
        arguments["checkpoint"] = within_run(arguments["checkpoint"])
    if arguments.get("reset") == "shift":  # it was called so first, and what was made then keeps its hash
        arguments["reset"] = "domain"
    network = (arguments.get("network") or {}).get("init_args") or {}
    if isinstance(network.get("weights"), str):
        network["weights"] = os.path.normpath(user_path(network["weights"]))
    if "channels_last" in network:  # null leaves it to the backbone, and what was made when it was false keeps its hash
        network["channels_last"] = bool(network["channels_last"])
    data = (kept.get("data") or {}).get("init_args") or {}
    for side in {"source", "target"} & set(data):
        data[side] = [str(name) for name in data[side]] if isinstance(data[side], list) else str(data[side])
    if isinstance(data.get("pseudo_labels"), str):
        data["pseudo_labels"] = within_run(data["pseudo_labels"])
    data.update({key: Path(path).name for key, path in data_paths(config).items()})
    problem = arguments.get("problem")
    problem = (problem.get("init_args") or {}) if isinstance(problem, dict) else {}  # else its name or nothing
    parts_of = {"model": arguments, "data": data, "network": network, "problem": problem}
    for part, absent in ((parts_of[name], values) for name, values in LATER.items()):
        for key in [key for key, value in absent.items() if part.get(key, value) == value]:
            part.pop(key, None)
    for key, names in INCIDENTAL.items():
        part = kept.get(key)
        if isinstance(part, dict):
            arguments = part.get("init_args", part)
            for name in names & set(arguments):
                del arguments[name]
    if callbacks:
        kept["callbacks"] = callbacks
    text = json.dumps([HASH_VERSION, _canonical(kept)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def data_paths(config: dict[str, Any]) -> dict[str, str]:
    """The absolute paths of the data that a configuration names, by key."""
    data = (config.get("data") or {}).get("init_args") or {}
    given = {key: user_path(data[key]) for key in DATA_PATHS if isinstance(data.get(key), str)}
    return {key: os.path.abspath(path) for key, path in given.items()}  # noqa: PTH100 (a link keeps its own name)


def changing_callbacks(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The callbacks of a configuration that may change the numbers of its run, as class paths and arguments.

    All callbacks but :data:`ONLOOKERS` may. An onlooker is among them if it monitors a value that is computed with
    target labels, since a run that kept checkpoints by them must not pass for another one.

    >>> changing_callbacks({"trainer": {"callbacks": [{"class_path": "SWAD"}, {"class_path": "DeviceStatsMonitor"}]}})
    [{'class_path': 'SWAD', 'init_args': {}}]
    """
    given = (config.get("trainer") or {}).get("callbacks") or []
    found: list[dict[str, Any]] = []
    for one in given if isinstance(given, list) else [given]:
        entry: dict[str, Any] = one if isinstance(one, dict) else {"class_path": str(one)}
        home, _, name = str(entry.get("class_path")).rpartition(".")
        of_lightning = home.split(".")[0] in LIGHTNING
        arguments = {key: entry[key] for key in ("init_args", "dict_kwargs") if isinstance(entry.get(key), dict)}
        onlooker = of_lightning and name in ONLOOKERS
        if not onlooker or any(str(part.get("monitor")).startswith(ORACLE) for part in arguments.values()):
            path = name if of_lightning else entry.get("class_path")
            found.append(
                {"class_path": path, "init_args": {}, **{key: part for key, part in arguments.items() if part}}
            )
    return found


def averages_weights(config: dict[str, Any]) -> bool:
    """Whether a callback replaces the final weights by an average that no validation has seen.

    It reads the configuration alone. :func:`dafw.callbacks.averaging.averaging` asks the callbacks themselves.
    """
    paths = [str(callback["class_path"]).split(".") for callback in changing_callbacks(config)]
    return any(
        path == ["StochasticWeightAveraging"] or (path[-1] == "SWAD" and path[0] in ("SWAD", "dafw")) for path in paths
    )


def within_run(checkpoint: str) -> str:
    """The part of a path that begins with a run directory, so that it is the same wherever the runs lie.

    Of a path without a run directory, the spelling alone is made the same.

    >>> within_run("/disk/runs/SourceOnly-a-b-s0-0123abcd/checkpoints/step=5.ckpt")
    'SourceOnly-a-b-s0-0123abcd/checkpoints/step=5.ckpt'
    >>> within_run("./models/source/")
    'models/source'
    """
    parts = Path(checkpoint).parts
    starts = [position for position, part in enumerate(parts) if re.fullmatch(r".+-[0-9a-f]{8}", part)]
    return "/".join(parts[starts[-1] :]) if starts else os.path.normpath(user_path(checkpoint))


def _canonical(value: Any) -> Any:
    """Gives a class one name, short or by path, and leaves out values that are null."""
    if isinstance(value, dict):
        return {
            key: item.rpartition(".")[2]
            if key == "class_path" and item.split(".")[0] in ("dafw", "datamodules")
            else _canonical(item)
            for key, item in value.items()
            if item is not None
        }
    return [_canonical(item) for item in value] if isinstance(value, list) else value
