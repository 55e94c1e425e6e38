"""Lists methods and datamodules. It reads the source files and imports nothing, so it is quick."""

import ast
from collections.abc import Iterator
from pathlib import Path


def classes(folder: Path, *, private: bool = False) -> Iterator[tuple[ast.ClassDef, Path]]:
    """Top-level classes of the Python files under ``folder``, in the files' order."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and (private or not node.name.startswith("_")):
                yield node, path


def summary(node: ast.ClassDef) -> str:
    """First sentence of a class's docstring."""
    return (ast.get_docstring(node) or "").partition("\n")[0].strip()


def constant(node: ast.ClassDef, name: str) -> object:
    """The literal that a class's body gives to ``name``; ``None`` if it gives none, or gives no literal."""
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            try:
                return ast.literal_eval(statement.value)
            except ValueError:
                return None
    return None


def exported(path: Path) -> list[str]:
    """The names in the ``__all__`` of a module's file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def is_abstract(node: ast.ClassDef) -> bool:
    """Whether a class says of itself that it is a base of methods and no method."""
    return any(keyword.arg == "abstract" and ast.unparse(keyword.value) == "True" for keyword in node.keywords)


def methods() -> dict[str, str]:
    """By name of a method, its setting and the first sentence of its docstring."""
    root = Path(__file__).parents[1] / "methods"
    found = {node.name: (node, path) for node, path in classes(root)}

    def setting(name: str) -> str:
        """The folder of the first class with a setting of its own among a class and its bases; empty if none has."""
        if name not in found:
            return ""
        node, path = found[name]
        if any(isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "setting" for part in node.body):
            return path.parent.name.replace("_", "-")
        return next(filter(None, (setting(getattr(base, "id", "")) for base in node.bases)), "")

    return {
        node.name: f"[{setting(node.name)}] {summary(node)}"
        for path in sorted(root.glob("*/__init__.py"))
        for node, _ in classes(path.parent)
        if node.name in exported(path) and not is_abstract(node)
    }


def datasets() -> dict[str, str]:
    """By name of a datamodule, the first sentence of its docstring and its domains."""
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
