"""How long `dafw table status` and `show` take on a table of many runs that are done.

python experiments/benchmarks/table.py --cells 1000

The runs were not trained: their results, configurations and logs are written as runs of 20 validations leave them.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from dafw.cli import main
from dafw.run.directory import run_directory
from dafw.run.result import SCHEMA_VERSION
from dafw.tables.reading import load_table

VALIDATORS = ("source_accuracy", "source_loss", "entropy", "im", "snd", "dev")
TASKS = 20
SEEDS = (0, 1, 2, 3, 4)


def write_table(folder: Path, cells: int, validations: int = 20) -> Path:
    """A table of methods, each on 20 tasks with 5 seeds, and its finished runs below ``folder/runs``."""
    rows = [
        {"name": f"DANN {number}", "model": {"class_path": "DANN", "init_args": {"width": number + 1}}}
        for number in range(max(1, cells // (TASKS * len(SEEDS))))
    ]
    table = {"tasks": {"pairs": list("abcde")}, "seeds": list(SEEDS), "rows": rows}
    path = folder / "large.yaml"
    path.write_text(yaml.safe_dump({**table, "base": {"data": {"class_path": "dafw.testing.toys.ToyData"}}}))
    history = [
        {"step": 50 * step, "validators": dict.fromkeys(VALIDATORS, 1 / step), "oracle": {}, "test": {}}
        for step in range(1, 1 + validations)
    ]
    steps = range(50, 50 * validations + 50, 5)
    files = {
        "metrics.csv": "step,train/loss,diagnostics/ramp\n" + "".join(f"{step},{1 / step},0.5\n" for step in steps),
        "log.txt": "".join(f"step {step}: train/loss {1 / step:.4f}\n" for step in steps),
    }
    config = ""
    for number, cell in enumerate(load_table(path).cells()):
        directory = run_directory(cell.config, folder / "runs")
        directory.mkdir(parents=True)
        config = config or yaml.safe_dump(cell.config)
        result = make_result(cell.config, directory, 0.5 + number % 7 / 100, history)
        for name, text in {**files, "config.yaml": config, "result.json": json.dumps(result)}.items():
            (directory / name).write_text(text)
    return path


def make_result(config: dict[str, Any], directory: Path, accuracy: float, history: list[dict[str, Any]]) -> Any:
    """The content of a run's ``result.json``."""
    source, target = (config["data"]["init_args"][side] for side in ("source", "target"))
    test = {name: {"accuracy": accuracy} for name in (*source, *target)}
    empty: dict[str, Any] = {name: {} for name in ("undefined_reason", "by_class", "versions")}
    return {
        **empty,
        **dict.fromkeys(("transductive_reason", "averaged", "git_revision", "checkpoint"), ""),
        "schema_version": SCHEMA_VERSION,
        "method": config["model"]["class_path"],
        "task": f"{','.join(source)}->{','.join(target)}",
        "source": source,
        "target": target,
        "setting": {"name": "adaptation", "source": True, "target": True},
        "seed": config["seed_everything"],
        "oracle": False,
        "monitors": [],
        "norm": "joint",
        "ranks": 1,
        "threads": 1,
        "config_hash": directory.name[-8:],
        "steps": history[-1]["step"],
        "seconds": {"total": 61.2, "train": 50.0, "evaluate": 8.0},
        "num_target_test": 1000,
        "metric": "accuracy",
        "label_sets": {"kind": "closed", "common": 10, "source_private": 0, "target_private": 0},
        "test": test,
        "history": [{**one, "test": {name: test[name] for name in target}} for one in history],
        "higher_is_better": dict.fromkeys(VALIDATORS, True),
        "machine": "linux",
    }


def measure(path: Path) -> dict[str, tuple[float, float]]:
    """Seconds of the clock and of the processor, by command; ``show`` draws its figures the first time alone."""
    found = {}
    for name, command in (("status", "status"), ("first show", "show"), ("show", "show")):
        clock, processor = time.monotonic(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            code = main(["table", command, str(path)])
        assert code == 0, name
        found[name] = (time.monotonic() - clock, time.process_time() - processor)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1000)
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        for name, (clock, processor) in measure(write_table(Path(temporary), parser.parse_args().cells)).items():
            print(f"{name}: {clock:.2f} s, {processor:.2f} s of processor time")
