# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a Python file has to keep to so that Transformers copies it with a checkpoint and loads it from there."""

import ast
import json
import re
import sys
from pathlib import Path


# Whoever loads a checkpoint has these; the rest must be optional.
ALLOWED = {"huggingface_hub", "numpy", "PIL", "safetensors", "torch", "transformers"}
OWN = {"modeling_pixclip", "processing_pixclip", "processing"}
# How Transformers finds what to copy: by these expressions, in the text of a file.
COPIED = (r"^\s*import\s+\.(\S+)\s*$", r"^\s*from\s+\.(\S+)\s+import")


def relative_imports(source: str) -> list[ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level]


def needed_files(entries, folder: Path) -> set[str]:
    """Names of the files that hold the modules `entries` and all that these import from beside them."""
    waiting, found = [*entries], set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        source = (folder / f"{name}.py").read_text(encoding="utf-8")
        for node in relative_imports(source):
            waiting += [node.module] if node.module else [alias.name for alias in node.names]
    return {f"{name}.py" for name in found}


def references(folder: Path) -> dict[str, set[str]]:
    """`module.Class` by key, of every auto_map and of custom_pipelines in the JSON files of a saved folder."""
    found: dict[str, set[str]] = {}

    def add(key, value):
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            if item is not None:
                found.setdefault(key, set()).add(item)

    def look_into(value):
        if isinstance(value, list):
            for item in value:
                look_into(item)
        if not isinstance(value, dict):
            return
        for key, item in value.items():
            if key == "auto_map":
                for auto, reference in item.items():
                    add(auto, reference)
            elif key == "custom_pipelines":
                for task, pipeline in item.items():
                    add(task, pipeline["impl"])
            else:
                look_into(item)

    for path in folder.glob("*.json"):
        look_into(json.loads(path.read_text(encoding="utf-8")))
    return found


def _is_availability(node: ast.expr) -> bool:
    names = [getattr(call.func, "id", "") for call in ast.walk(node) if isinstance(call, ast.Call)]
    return any(re.fullmatch(r"is_\w+_available", name) for name in names)


def _required_imports(node: ast.AST):
    """Imports for which the library must be there; Transformers looks into functions, not into `try`."""
    if isinstance(node, ast.Try) or (isinstance(node, ast.If) and _is_availability(node.test)):
        return
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _required_imports(child)


def _absolute_modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []


def violations(source: str, siblings: set[str]) -> list[str]:
    """What is wrong with the text of a file; `siblings` are the names of the modules beside it."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        own = [module for module in _absolute_modules(node) if module.partition(".")[0] in OWN]
        found += [f"line {node.lineno}: absolute import of {module}, which is not there" for module in own]
        if isinstance(node, ast.Name) and node.id == "__file__":
            found.append(f"line {node.lineno}: __file__, but no other than Python files are copied")
    imported = set()
    for node in relative_imports(source):
        if node.module is None:
            found.append(f"line {node.lineno}: from {'.' * node.level} import, of which no file is copied")
        elif node.level > 1 or "." in node.module:
            found.append(f"line {node.lineno}: import from another folder: {'.' * node.level}{node.module}")
        elif node.module not in siblings:
            found.append(f"line {node.lineno}: there is no {node.module}.py beside it")
        else:
            imported.add(node.module)
    for node in _required_imports(tree):
        for module in _absolute_modules(node):
            top = module.partition(".")[0]
            if top not in ALLOWED | OWN and top not in sys.stdlib_module_names:
                found.append(f"line {node.lineno}: {top} is required; import it under `try:`")
    copied = {name for expression in COPIED for name in re.findall(expression, source, re.MULTILINE)}
    for name in sorted(copied - {f"{'.' * (node.level - 1)}{node.module}" for node in relative_imports(source)}):
        found.append(f"a line of text looks like an import of .{name}")
    found += [f"the import of .{name} is written so that its file is not copied" for name in sorted(imported - copied)]
    return found


def clashes(folders) -> list[str]:
    """File names that are in several folders: in a checkpoint they would overwrite each other."""
    names = [path.name for folder in folders for path in Path(folder).glob("*.py") if path.name != "__init__.py"]
    return sorted({name for name in names if names.count(name) > 1})
