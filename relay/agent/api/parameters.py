"""Parameterized kernelspecs (JEP 87): values that a client chooses when it starts a kernel.

A kernelspec's ``metadata.parameters`` is a JSON Schema; the chosen values, as text, stand in for
``{name}`` in the kernelspec's argv and env. A free text could become anything there, an option of
the kernel's program or a piece of a script: unless the cluster allows it, only parameters whose
schema leaves a choice between known values, or a number, may be set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jsonschema

from relay.errors import BadRequest

_CONSTRAINED: Final = frozenset({"boolean", "integer", "number"})


def choose(
    kernelspec: Mapping[str, Any], asked: Mapping[str, Any] | None, *, allow_free: bool
) -> dict[str, str]:
    """Return the value of each parameter of a kernelspec: the one asked for, or the default.

    ``kernelspec`` is the REST model. ``allow_free`` permits parameters that take any text.

    Raises:
        BadRequest: the kernelspec has no such parameter, its schema refuses a value, or a value is
            missing that has no default.
    """
    schema = (kernelspec["spec"].get("metadata") or {}).get("parameters") or {}
    properties: dict[str, Any] = schema.get("properties") or {}
    values = {
        name: each["default"]
        for name, each in properties.items()
        if isinstance(each, dict) and "default" in each
    }
    for name, value in (asked or {}).items():
        if name not in properties:
            raise BadRequest(f"parameters: this kernelspec has none named {name[:64]!r}.")
        if not allow_free and not _is_constrained(properties[name]):
            raise BadRequest(
                f"parameters: {name} takes any text, which this cluster does not allow "
                "(kernels.allow_free_parameters)."
            )
        values[name] = value
    _check(schema, properties, values)
    return {name: _text(value) for name, value in values.items()}


def _is_constrained(schema: object) -> bool:
    if not isinstance(schema, dict):
        # True and false are schemas too: anything, nothing.
        return False
    kind = schema.get("type")
    kinds = set(kind) if isinstance(kind, list) else {kind}
    return "enum" in schema or "const" in schema or kinds <= _CONSTRAINED


def _check(
    schema: Mapping[str, Any], properties: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    missing = [name for name in properties if name not in values]
    if missing:
        raise BadRequest(f"parameters: {missing[0]} has no default and must be given.")
    try:
        jsonschema.validate(values, schema)
    except jsonschema.ValidationError as error:
        name = ".".join(str(step) for step in error.absolute_path)
        raise BadRequest(f"parameters: {name}: {error.message[:200]}.") from error
    except jsonschema.SchemaError as error:
        raise BadRequest("parameters: this kernelspec's schema is not valid.") from error


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
