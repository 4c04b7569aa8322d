"""Reads settings from YAML and ``RELAY_*`` variables, and reports all mistakes at once.

``RELAY_A__B=value`` sets ``a.b`` and takes precedence over the file. The value is text where the
setting is text, else YAML (``RELAY_TICKET_KEYS='[a.pem, b.pem]'``). In a cluster's name ``_`` is
``-``, which a variable's name cannot hold. An empty variable counts as unset. Relative paths in
the file are relative to the file's folder, those in variables to the working directory.
"""

from __future__ import annotations

import contextlib
import difflib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import msgspec
import yaml

from relay.config.plain_errors import plain_error

PREFIX: Final = "RELAY_"
SHARED: Final = frozenset({"RELAY_STATE_DIR"})
"""Variables for several programs; those without such a setting ignore them."""

Keys = tuple[str, ...]
Tree = Any  # plain values, as YAML has them
Kind = Any  # a type, as annotations have them
T = TypeVar("T", bound=msgspec.Struct)
_INVALID: Final[Any] = object()  # in the place of a value whose mistake is reported already


class Problem(NamedTuple):
    """One mistake: the setting's path, the text, and the place in a file where that is known."""

    path: str
    text: str
    where: str = ""

    def __str__(self) -> str:
        subject = f"{self.path}: {self.text}" if self.path else self.text
        return f"{subject} ({self.where})" if self.where else subject


class ConfigError(Exception):
    """The configuration is invalid; ``str()`` has one line for each mistake."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class Loaded(NamedTuple, Generic[T]):
    """Settings, and the place where each was set."""

    settings: T
    where: Callable[[str], str]
    """Returns the file and line, or the variable, of the setting at a path, or of its section."""


def load(struct_type: type[T], path: Path | None, env: Mapping[str, str]) -> T:
    """Read settings from the YAML file at ``path``, if any, and ``RELAY_*`` variables of ``env``.

    Raises ``ConfigError`` with every mistake.
    """
    return load_located(struct_type, path, env).settings


def load_located(struct_type: type[T], path: Path | None, env: Mapping[str, str]) -> Loaded[T]:
    """As `load`, with the places of the settings."""
    source = _Source()
    tree: Tree = None if path is None else source.read(path)
    tree = {} if tree is None else tree
    if isinstance(tree, dict):
        source.overlay(tree, struct_type, env)
    base = Path() if path is None else path.parent
    settings = _Builder(source, base.absolute()).build(struct_type, tree, ())
    if source.problems:
        raise ConfigError(source.problems)
    assert isinstance(settings, struct_type)  # noqa: S101 -- without problems it was built
    return Loaded(settings, lambda path: source.nearest(tuple(path.split("."))))


class _Source:
    """The configuration as plain values, and the place of each of them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.where: dict[Keys, str] = {}

    def report(self, keys: Keys, text: str) -> None:
        """Report a mistake at ``keys``, with the nearest known place."""
        self.problems.append(Problem(".".join(keys), text, self.nearest(keys)))

    def from_env(self, keys: Keys) -> bool:
        """Whether the value at ``keys`` comes from a variable."""
        return self.nearest(keys).startswith("$")

    def nearest(self, keys: Keys) -> str:
        """Return the nearest known place at or above ``keys``; empty where there is none."""
        known = (keys[:length] for length in range(len(keys), -1, -1))
        return next((self.where[some] for some in known if some in self.where), "")

    def read(self, path: Path) -> Tree:
        """Return the file as plain values, ``None`` when it is empty."""
        self.where[()] = str(path)
        try:
            text = path.read_text("utf-8")
        except OSError as error:
            self.report((), f"cannot be read: {error.strerror}")
            return _INVALID
        except UnicodeDecodeError:
            self.report((), "is not UTF-8 text")
            return _INVALID
        return self.parse(text, str(path), ())

    def parse(self, text: str, name: str, keys: Keys) -> Tree:
        """Return the YAML in ``text``, which comes from ``name``, as plain values."""
        try:
            with _loader(text) as loader:
                node = loader.get_single_node()
                return None if node is None else self._plain(loader, node, name, keys, set())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            at = name if mark is None or name.startswith("$") else f"{name}:{mark.line + 1}"
            self.problems.append(Problem(".".join(keys), f"is not valid YAML: {error.problem}", at))
        except yaml.YAMLError:
            self.problems.append(Problem(".".join(keys), "is not valid YAML", name))
        return _INVALID

    def _plain(
        self, loader: yaml.SafeLoader, node: yaml.Node, name: str, keys: Keys, seen: set[int]
    ) -> Tree:
        if keys or not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1
            self.where[keys] = name if name.startswith("$") else f"{name}:{line}"
        if id(node) in seen:  # an alias may contain itself, or double the size at every level
            self.report(keys, "is a YAML alias, which is not supported; write the value out")
            return _INVALID
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, name, keys, seen)
        if isinstance(node, yaml.SequenceNode):
            return [
                self._plain(loader, item, name, (*keys, str(index)), seen)
                for index, item in enumerate(node.value)
            ]
        try:
            return loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            self.report(keys, "is not a value that YAML supports")
            return _INVALID

    def _mapping(
        self, loader: yaml.SafeLoader, node: yaml.MappingNode, name: str, keys: Keys, seen: set[int]
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            inner = (*keys, key)
            if key in result:
                self.problems.append(
                    Problem(
                        ".".join(inner), "is set twice", f"{name}:{key_node.start_mark.line + 1}"
                    )
                )
                continue
            result[key] = self._plain(loader, value_node, name, inner, seen)
            if not name.startswith("$"):  # the place of the key, not the beginning of its block
                self.where[inner] = f"{name}:{key_node.start_mark.line + 1}"
        return result

    def overlay(self, tree: dict[str, Any], root: type, env: Mapping[str, str]) -> None:
        """Put the variables' values into ``tree``, over those of the file."""
        # Sorted, so that RELAY_TLS comes before RELAY_TLS__KEY, which then adds to it.
        for name in sorted(env):
            if not name.startswith(PREFIX) or not env[name]:
                continue
            keys, leaf = _locate(root, tuple(name[len(PREFIX) :].lower().split("__")))
            if leaf is not None:
                text = _is_text(leaf)
                value = env[name] if text else self.parse(env[name], f"${name}", keys)
                self._put(tree, keys, value, f"${name}")
            elif name not in SHARED:
                self.problems.append(Problem(".".join(keys), "no such setting", f"${name}"))

    def _put(self, tree: dict[str, Any], keys: Keys, value: object, name: str) -> None:
        inside: Any = tree
        for key in keys[:-1]:
            if inside.get(key) is None:
                inside[key] = {}
            inside = inside[key]
            if not isinstance(inside, dict):
                return  # reported when the file's own value is checked
        inside[keys[-1]] = value
        self.where[keys] = name


class _Builder:
    """Builds the struct from the bottom up, and continues after a mistake."""

    def __init__(self, source: _Source, base: Path) -> None:
        self._source = source
        self._base = base

    def build(self, kind: Kind, value: Tree, keys: Keys, default: Tree = None) -> Tree:
        """Return ``value`` as ``kind``, or ``_INVALID`` after a report."""
        if value is _INVALID:
            return _INVALID
        kind, optional = _without_none(kind)
        if value is None and optional:
            return None
        origin = _origin(kind)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(kind, value, keys, default)
        if origin is dict:
            return self._dict(kind, value, keys)
        if origin is list:
            return self._list(kind, value, keys)
        return self._leaf(kind, value, keys)

    def _struct(self, kind: type[T], value: Tree, keys: Keys, default: Tree) -> Tree:
        value = {} if value is None else value
        if not isinstance(value, dict):
            return self._bad(keys, "expected a mapping of settings")
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        built = {}
        for name in value.keys() - fields.keys():
            self._bad((*keys, name), "no such setting" + _did_you_mean(name, fields))
            built[name] = _INVALID
        for name, field in fields.items():
            # A section that the file sets in part keeps the rest of its default.
            fallback = getattr(default, name) if isinstance(default, kind) else _default(field)
            if name in value:
                built[name] = self.build(field.type, value[name], (*keys, name), fallback)
            elif fallback is msgspec.NODEFAULT:
                built[name] = self._bad((*keys, name), "is required")
            else:
                built[name] = fallback
        if _INVALID in built.values():
            return _INVALID
        try:
            return kind(**built)
        except ValueError as error:
            inside, text = _split_subject(str(error), fields)
            return self._bad((*keys, *inside), text)

    def _dict(self, kind: Kind, value: Tree, keys: Keys) -> Tree:
        key_kind, value_kind = get_args(kind)
        if not isinstance(value, dict):
            return self._bad(keys, "expected a mapping")
        built = {}
        for key, inner in value.items():
            checked = self._leaf(key_kind, key, (*keys, key))
            item = self.build(value_kind, inner, (*keys, key))
            built[key] = _INVALID if checked is _INVALID else item
        return _INVALID if _INVALID in built.values() else built

    def _list(self, kind: Kind, value: Tree, keys: Keys) -> Tree:
        if not isinstance(value, list):
            return self._bad(keys, "expected a list")
        (item_kind,) = get_args(kind)
        built = [self.build(item_kind, item, (*keys, str(n))) for n, item in enumerate(value)]
        return _INVALID if _INVALID in built else built

    def _leaf(self, kind: Kind, value: Tree, keys: Keys) -> Tree:
        extra = _extra(kind)
        try:
            if "read" in extra:
                value = extra["read"](value)
            value = msgspec.convert(value, kind)
            if "check" in extra:
                extra["check"](value)
        except msgspec.ValidationError as error:
            return self._bad(keys, plain_error(str(error), kind))
        except ValueError as error:
            return self._bad(keys, str(error))
        return self._path(value, keys) if "path" in extra else value

    def _path(self, value: str, keys: Keys) -> Tree:
        here = self._source.from_env(keys)
        try:
            return str((Path.cwd() if here else self._base) / Path(value).expanduser())
        except RuntimeError:
            return self._bad(keys, "there is no such home directory")

    def _bad(self, keys: Keys, text: str) -> object:
        self._source.report(keys, text)
        return _INVALID


def _locate(kind: Kind, segments: Keys) -> tuple[Keys, Kind]:
    """Return the path that a variable's segments name, and its type; ``None`` if unknown."""
    keys: Keys = ()
    for segment in segments:
        kind, _ = _without_none(kind)
        key = segment
        if _origin(kind) is dict:
            key, kind = segment.replace("_", "-"), get_args(kind)[1]
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            kind = {each.encode_name: each.type for each in msgspec.structs.fields(kind)}.get(
                segment
            )
        else:
            kind = None
        keys = (*keys, key)
    return keys, kind


@contextlib.contextmanager
def _loader(text: str) -> Iterator[yaml.SafeLoader]:
    loader = yaml.SafeLoader(text)
    try:
        yield loader
    finally:
        loader.dispose()


def _origin(kind: Kind) -> Kind:
    return get_origin(kind)


def _without_none(kind: Kind) -> tuple[Kind, bool]:
    if _origin(kind) not in (Union, types.UnionType):
        return kind, False
    (inner,) = (each for each in get_args(kind) if each is not types.NoneType)
    return inner, True


def _is_text(kind: Kind) -> bool:
    kind, _ = _without_none(kind)
    plain = get_args(kind)[0] if _origin(kind) is Annotated else kind
    return plain is str or _origin(plain) is Literal


def _extra(kind: Kind) -> Mapping[str, Any]:
    metas: Iterator[Any] = iter(get_args(kind)[1:] if _origin(kind) is Annotated else ())
    return next((meta.extra or {} for meta in metas), {})


def _default(field: msgspec.structs.FieldInfo) -> Tree:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _split_subject(text: str, known: Mapping[str, object]) -> tuple[Keys, str]:
    """Split a message into its setting, as in ``policy.rules.0: …``, and the rest."""
    subject, colon, rest = text.partition(": ")
    keys = tuple(subject.split("."))
    return (keys, rest) if colon and keys[0] in known else ((), text)


def _did_you_mean(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
