"""Few modules at the top, no circle of imports, no private name borrowed: what import contracts do not say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grimp

from tests.support.paths import ROOT

PACKAGE = ROOT / "python" / "orbitsplit"
FILES = sorted(PACKAGE.rglob("*.py"))


def test_few_modules_stand_beside_the_packages() -> None:
    assert len([*PACKAGE.glob("*.py")]) <= 5


def _borrowed_names(file: Path) -> Iterator[str]:
    """Yield what a file takes from other modules by a private name: imported, or read as an attribute."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.level or (node.module or "").startswith("orbitsplit")):
            continue
        for alias in node.names:
            # `from orbitsplit.runtime import _torchrun` names a module, which may be imported as it is called.
            if alias.name.startswith("_") and not [*PACKAGE.rglob(f"{alias.name}.py"), *PACKAGE.rglob(alias.name)]:
                yield f"{node.module}.{alias.name}"
            modules.add(alias.asname or alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            is_private = node.attr.startswith("_") and not node.attr.startswith("__")
            if is_private and node.value.id[:1].islower():
                yield f"{node.value.id}.{node.attr}"


def test_no_module_borrows_a_private_name_of_another() -> None:
    borrowed = {str(file.relative_to(PACKAGE)): [*_borrowed_names(file)] for file in FILES}
    assert not {file: names for file, names in borrowed.items() if names}


def test_imports_have_no_circle() -> None:
    """Not even one that is broken by importing late or for types alone."""
    graph = grimp.build_graph("orbitsplit", cache_dir=None)
    lazy = {"orbitsplit", "orbitsplit.runtime"}  # packages that import their public names when these are first used
    imports = {m: set(graph.find_modules_directly_imported_by(m)) - lazy for m in graph.modules if m not in lazy}
    while imports:
        free = {module for module, needed in imports.items() if not needed & imports.keys()}
        assert free, f"these import each other: {sorted(imports)}"
        imports = {module: needed for module, needed in imports.items() if module not in free}
