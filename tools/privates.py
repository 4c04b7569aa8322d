"""Private names of libraries that relay/ uses are listed, with a ceiling on the library's version.

A library may rename what is private in any release. `PRIVATES` says what is used and why;
tests/tools/test_privates.py looks each up in the installed version. It may list names without an
underscore, too, that a library does not document.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.findings import Finding
from tools.sources import Source, sources

PRIVATES = Path("tools/privates.toml")
"""By private name: its owners and the reason for its use; relative to the project's root."""
DOCUMENTED = frozenset({"_asdict", "_replace", "_fields", "_field_defaults", "_make"})
"""Names of named tuples: with an underscore, yet public."""


@dataclass(frozen=True)
class Private:
    """A private name that relay/ uses.

    ``owner``: the class that has it, ``module.Class``, or the module itself.
    """

    name: str
    owner: str
    why: str

    @property
    def library(self) -> str:
        """The name of the library's top package."""
        return self.owner.partition(".")[0]

    def exists(self) -> bool:
        """Look the name up in the installed library, among what instances are given, too."""
        owner = pkgutil.resolve_name(self.owner)
        return hasattr(owner, self.name) or (
            isinstance(owner, type) and self.name in instance_names(owner)
        )


def read_privates(root: Path) -> list[Private]:
    """Return the table of the project in ``root``."""
    table = tomllib.loads((root / PRIVATES).read_text())
    return [
        Private(name, owner, entry["why"])
        for name, entry in table.items()
        for owner in entry["owners"]
    ]


def instance_names(owner: type) -> set[str]:
    """Return the names that the methods of ``owner`` and its bases assign to ``self``."""
    return {
        node.attr
        for base in owner.__mro__[:-1]
        for node in ast.walk(_tree_of(base))
        if isinstance(node, ast.Attribute)
        if isinstance(node.ctx, ast.Store) and _is_self(node.value)
    }


def _tree_of(owner: type) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError):  # made in C, or by a class decorator
        return ast.Module([], [])


def check(root: Path) -> Iterator[Finding]:
    """Report private names without an entry, unused entries, and libraries without a ceiling."""
    privates = {private.name for private in read_privates(root)}
    unused = set(privates)
    for source in sources(root, "relay"):
        unused -= _mentioned(source.tree)
        for name, node in uses(source):
            if name not in privates:
                text = f"{name} is private to a library and not in {PRIVATES}"
                yield Finding(name, f"{source.at(node)}: {text}")
    for name in sorted(unused):
        yield Finding(name, f"{PRIVATES}: nothing uses {name} any more")
    yield from _without_ceiling(root)


def _mentioned(tree: ast.Module) -> set[str]:
    """Return the names that are imported, defined or taken from anything in ``tree``."""
    names = set(_defined(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.alias(name=name):
                names.add(name)
    return names


def uses(source: Source) -> Iterator[tuple[str, ast.expr | ast.stmt]]:
    """Yield the libraries' private names in ``source``: imported, inherited, or of an object."""
    yield from _imported(source.tree)
    own = set(_defined(source.tree))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef):
            yield from _inherited(node, _imports(source.tree))
        elif _is_foreign(node) and node.attr not in own:
            yield node.attr, node


def is_private(name: str) -> bool:
    """Whether ``name`` begins with an underscore and is not one that Python or its users know."""
    return name.startswith("_") and not name.endswith("_") and name not in DOCUMENTED


def _is_foreign(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Recognise a private name of another object than ``self``."""
    return isinstance(node, ast.Attribute) and not _is_self(node.value) and is_private(node.attr)


def _imported(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield from ((part, node) for part in name.split(".") if is_private(part))


def _inherited(
    node: ast.ClassDef, imports: dict[str, str]
) -> Iterator[tuple[str, ast.expr | ast.stmt]]:
    """Yield the private names that a class shares with the library's classes that it inherits."""
    theirs: set[str] = set()
    for base in filter(None, (_library_class(base, imports) for base in node.bases)):
        theirs |= {name for name in {*dir(base), *instance_names(base)} if is_private(name)}
    for child in ast.walk(node):
        match child:
            case ast.Attribute(value=value, attr=name) if _is_self(value) and name in theirs:
                yield name, child
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name in theirs:
                yield name, child


def _library_class(base: ast.expr, imports: dict[str, str]) -> type | None:
    """Return the class that ``base`` names, if it comes from a library."""
    top, _, rest = ast.unparse(base).partition(".")
    place = imports.get(top, "")
    library = place.partition(".")[0]
    if library in {"", "relay", *sys.stdlib_module_names}:
        return None
    found = pkgutil.resolve_name(f"{place}.{rest}".rstrip("."))
    return found if isinstance(found, type) else None


def _imports(tree: ast.Module) -> dict[str, str]:
    """Return where each imported name comes from, with its module before it."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=value, attr=name, ctx=ast.Store()) if _is_self(value):
                yield name


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def requirements(root: Path) -> dict[str, Requirement]:
    """Return what pyproject.toml says that the package needs, by name."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    needed = map(Requirement, project["dependencies"])
    return {canonicalize_name(requirement.name): requirement for requirement in needed}


def pins(root: Path) -> dict[str, str]:
    """Return the versions that requirements.lock pins, by name."""
    lines = (root / "requirements.lock").read_text().splitlines()
    pinned = (line.split()[0].partition("==") for line in lines if "==" in line.split(" ;")[0])
    return {canonicalize_name(name): version for name, _, version in pinned}


def _without_ceiling(root: Path) -> Iterator[Finding]:
    needed, pinned = requirements(root), pins(root)
    for library in sorted({private.library for private in read_privates(root)}):
        name = canonicalize_name(library)
        if name not in needed or not any("<" in part.operator for part in needed[name].specifier):
            text = (
                f"pyproject.toml: {name} has no ceiling, though relay/ uses what is private to it"
            )
            yield Finding(name, text)
        elif not needed[name].specifier.contains(pinned[name]):
            text = f"requirements.lock: {name}=={pinned[name]} is not {needed[name].specifier}"
            yield Finding(name, text)
