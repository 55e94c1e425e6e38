"""The README of an exported model: what it takes and gives, what trained it, how good it is, and its limits."""

from collections.abc import Iterator, Mapping
from typing import Any

from dafw.escape import markdown
from dafw.export.folder import GRAPH, MODEL, Exported


def card(config: Exported) -> str:
    """The card in Markdown."""
    about = config.about
    parts = [f"# {markdown(str(about.get('title', 'A model')))}", ""]
    for title, lines in (
        ("What goes in and what comes out", list(_interface(config))),
        ("How to run it", list(_code(config))),
        ("What trained it", list(_facts(about.get("training", {})))),
        ("Numbers", list(_facts(about.get("numbers", {}))) or ["None are known."]),
        ("The check at the export", list(_facts(about.get("check", {})))),
        ("Limits", [f"- {markdown(str(one))}" for one in about.get("limits", [])]),
    ):
        if lines:
            parts += [f"## {title}", "", *lines, ""]
    return "\n".join(parts)


def _interface(config: Exported) -> Iterator[str]:
    masks = config.kind == "segmentation"
    free = ", H and W" if config.any_size else ""
    yield f"- In: `images`, uint8 {config.takes}, values 0 to 255, for any N{free}."
    yield "- Outside of the model: decoding of the file, upright (EXIF), colours in the order red, green, blue."
    how = config.prepare
    if how is None:
        yield "- Nothing here says how a file becomes such an image: the data of the run does it."
    elif config.resize:
        yield f"- Inside of the model: {how.in_words}; then the normalisation of the channels and the cast."
        if config.form == "torch" and not config.keeps_size:
            yield "- The scaling of uint8 exists on the CPU alone: for a GPU export with `--resize outside`."
    else:
        yield f"- Outside of the model, too: {how.in_words}. Inside: the normalisation of the channels and the cast."
    out = f"(N, {len(config.classes)})"
    if masks:
        sides = "H, W" if config.any_size else ", ".join(map(str, config.shape[1:]))
        out = f"(N, {len(config.classes)}, {sides}), of each pixel of the images that went in,"
    yield f"- Out: `probabilities`, float32 {out} of the classes below, in their order."
    if masks and config.any_size and config.resize and not config.keeps_size:
        yield "- The scores are scaled back inside of the model, before their softmax."
    elif masks and not config.resize and how is not None and not config.keeps_size:
        yield "- For a mask at the size of a scaled image, scale the logarithms of the probabilities back: dafw does."
    if "known" in config.outputs:
        yield "- Out: `known`, bool (N,), whether an image is held to be of one of these classes."
        yield "- Out: `unknown`, float32 (N,), the margin by which it is rejected; it is rejected above 0."
    yield f"- Weights: {config.dtype}."
    yield f"- Classes: {', '.join(markdown(one) for one in config.classes)}."


def _code(config: Exported) -> Iterator[str]:
    file = MODEL[config.form]
    trust = ", trust=True" if config.form == "torch" else ""
    yield from ("```python", "import dafw", "")
    yield f'model = dafw.from_pretrained("."{trust})'
    found = "masks[0].shape" if config.kind == "segmentation" else "classes"
    yield from (f'print(model.predict(["photo.jpg"]).{found})', "```", "")
    if config.form == "torch":
        yield f'Without dafw: `torch.export.load("{file}").module()`. It unpickles: read no file of a stranger.'
    elif config.form == "onnx":
        yield f'Without dafw: `onnxruntime.InferenceSession("{file}")`.'
    else:
        yield f"`{file}` holds the weights, and `{GRAPH}` the program in operators of Core ATen."
        yield "Neither can run other code."


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in facts.items():
        yield f"- {markdown(str(name))}: {markdown(str(value))}"
