"""What there is, read from the source files: quick, because nothing is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

SETTINGS = ("adaptation", "generalization", "source_free", "test_time", "detection", "segmentation")


def classes(folder: Path, *, private: bool = False) -> Iterator[tuple[ast.ClassDef, Path]]:
    """Top-level classes of the Python files under ``folder``, in the files' order; the public ones unless asked."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and (private or not node.name.startswith("_")):
                yield node, path


def summary(node: ast.ClassDef) -> str:
    """First sentence of a class's docstring."""
    return (ast.get_docstring(node) or "").partition("\n")[0].strip()


def constant(node: ast.ClassDef, name: str) -> object:
    """The literal that a class's body gives to ``name``; ``None`` if there is none, or only running it would tell."""
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            try:
                return ast.literal_eval(statement.value)
            except ValueError:
                return None
    return None


def methods() -> dict[str, str]:
    """Name of each method -> its setting and first sentence."""
    root = Path(__file__).parents[1] / "methods"
    return {
        node.name: f"[{setting.replace('_', '-')}] {summary(node)}"
        for setting in SETTINGS
        for node, path in classes(root / setting)
        if path.name != "base.py"
    }


def datasets() -> dict[str, str]:
    """Name of each datamodule -> its first sentence and its domains."""
    import datamodules

    nodes = {node.name: node for node, _ in classes(Path(datamodules.__file__).parent, private=True)}

    def derives(node: ast.ClassDef) -> bool:
        names = [getattr(base, "id", "") for base in node.bases]
        return "DomainDataModule" in names or any(derives(nodes[name]) for name in names if name in nodes)

    found = {}
    for node in nodes.values():
        if derives(node) and not node.name.startswith("_"):
            names = constant(node, "domain_names")
            listed = f" domains: {', '.join(names)}" if isinstance(names, tuple | list) and names else ""
            found[node.name] = f"{summary(node)}{listed}"
    return found
