"""Every benchmark of speed: prints its progress, writes results.json beside this file and the tables of docs/speed.md.

All of it takes about 65 minutes on two cores; with --quick it takes seconds, and its numbers mean nothing.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

THREADS = 1
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch and numpy are imported
    os.environ.setdefault(_name, str(THREADS))

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs" / "speed.md"
TITLES = {
    "step": "A training step",
    "forms": "The forms of a step",
    "lightning_parts": "Parts of Lightning that are replaced",
    "loader": "Loading images",
    "cell": "A cell of a table",
    "threads": "Runs side by side",
    "methods": "The methods",
    "masks": "The methods for masks",
    "boxes": "Detectors and the methods for boxes",
    "streams": "Test-time methods on a stream",
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--quick", action="store_true", help="tiny settings; writes nothing unless told where")
    made.add_argument("--only", nargs="+", choices=list(TITLES), help="these alone; writes nothing unless told where")
    made.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="where the training step and its forms run"
    )
    made.add_argument("--json", type=Path, help=f"the file of results ({HERE.name}/results.json)")
    made.add_argument("--docs", type=Path, help="the page whose marked block is rewritten (docs/speed.md)")
    made.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs them.

    Returns:
        0; 1 if a limit is missed and ``--check`` was given.
    """
    options = parser().parse_args(argv)
    import boxes
    import cell
    import forms
    import lightning_parts
    import loader
    import masks
    import methods
    import step
    import streams
    import threads
    import torch
    from harness import Measure, as_json, environment, replace_block, say

    torch.set_num_threads(THREADS)
    warnings.filterwarnings("ignore", message=".*number of training batches.*")
    whole = not options.quick and options.only is None
    found: dict[str, list[Measure]] = {}
    machine = environment(THREADS)
    started, start = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), time.monotonic()
    scripts = {"lightning_parts": lightning_parts, "loader": loader, "cell": cell, "threads": threads}
    scripts |= {"methods": methods, "masks": masks, "boxes": boxes, "streams": streams}
    for name in options.only or TITLES:
        say(f"{TITLES[name].lower()} ({name}.py)")
        if name in ("step", "forms"):
            found[name] = {"step": step, "forms": forms}[name].measure(options.quick, options.device)
        else:
            found[name] = scripts[name].measure(options.quick)
    machine["load_after"] = environment(THREADS)["load"]
    results = {
        "schema_version": 1,
        "started": started,
        "seconds": round(time.monotonic() - start, 1),
        "quick": options.quick,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "machine": machine,
        "benchmarks": {name: as_json(measures) for name, measures in found.items()},
    }
    text = report(results, found)
    print(text)
    if path := options.json or (HERE / "results.json" if whole else None):
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        say(f"wrote {path}")
    if page := options.docs or (DOCS if whole else None):
        replace_block(page, text)
        say(f"wrote {page}")
    missed = [measure.name for measures in found.values() for measure in measures if measure.holds is False]
    if missed:
        say("limits missed: " + "; ".join(missed))
    return int(bool(missed) and options.check)


def report(results: dict[str, Any], found: dict[str, Any]) -> str:
    """The tables as Markdown."""
    import methods
    import streams
    from harness import table

    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    where = f"{machine['system']}, {machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread"
    loads = f"load average {machine['load'][0]} before and {machine['load_after'][0]} after"
    text = f"Measured {results['started']} on {where}, {results['device']} for the step; {loads}. {versions}."
    parts = [text + (" **A quick run: these numbers mean nothing.**" if results["quick"] else "")]
    own = {"methods": methods.table, "streams": streams.table}
    tables = {name: own.get(name, table)(measures) for name, measures in found.items()}
    parts += [f"### {TITLES[name]}\n\n{text}" for name, text in tables.items()]
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
