"""Structured logging to stderr, in lines that are bounded, escaped and redacted.

Call ``configure`` once, take a logger from ``get_logger`` anywhere, and put what all lines of a
request share into ``context(request_id=...)``. Lines of libraries (``logging``) look the same.

Logged values cannot forge a line, flood the log or leak a credential: every text is cut at
``FIELD_CHARACTERS``, unprintable characters are escaped, and what looks like a token is masked.
Log paths without their query all the same, and never a request's headers.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

FIELD_CHARACTERS: Final = 256
"""Characters of one text in a line; a longer text ends in an ellipsis."""
TRACE_CHARACTERS: Final = 8192
"""Characters of an exception's traceback, the one field that is useless when cut short."""
_ITEMS: Final = 20
"""Entries of one list or mapping; deeper nesting than ``_DEPTH`` levels becomes text."""
_DEPTH: Final = 2

_MASK: Final = "***"
_SECRET_NAME: Final = re.compile(
    r"authorization|cookie|password|passwd|secret|credential|private_?key|(?:\A|[_-])token\Z",
    re.IGNORECASE,
)
_SECRETS: Final = (
    # "Authorization: token abc", as a header, a dict's repr or JSON
    re.compile(
        r"""(?P<keep>authorization["']?\s{0,4}[:=,]\s{0,4}(?:b?["'])?(?:(?:bearer|token|basic)\s{1,4})?)[^\s"',}]+""",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<keep>\bbearer\s+)[^\s\"',}]+", re.IGNORECASE),
    re.compile(r"(?P<keep>\btoken\s+)[\w.~+/=-]{16,}", re.IGNORECASE),
    # in a query, or in a query that was quoted once more
    re.compile(r"(?P<keep>token(?:=|%3d))[^&\s\"'#;]+", re.IGNORECASE),
    # in a subprotocol, or in a path
    re.compile(r"(?P<keep>token\.websocket\.jupyter\.org\.)[^\s\"',;]+", re.IGNORECASE),
    re.compile(r"(?P<keep>/t/)[^/\s\"'?#]+"),
    # our own tokens, and JSON Web Tokens, wherever they are
    re.compile(r"(?P<keep>relay_)[\w-]{16,}"),
    re.compile(r"(?P<keep>\beyJ)[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?"),
)
_HINTS: Final = ("token", "authorization", "bearer", "/t/", "relay_", "eyj")
"""Each text that a pattern matches contains one of these, in lower case."""


def configure(
    level: str = "info", form: str = "auto", *, component: str, stream: TextIO | None = None
) -> None:
    """Set up logging for this process; a second call changes it.

    ``level`` and ``form`` are the values of ``LogSettings``; ``component`` (edge, agent, holder…)
    is in every line. ``stream`` replaces stderr in tests.
    """
    out = _Out(sys.stderr if stream is None else stream)
    number = logging.getLevelNamesMapping()[level.upper()]
    shared = _processors(component)
    render = _renderer(form, out)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),  # type: ignore[arg-type]
    )
    _configure_stdlib(number, shared, render, out)


def get_logger(**fields: Any) -> FilteringBoundLogger:  # noqa: ANN401 -- anything can be logged
    """Make a logger that adds ``fields`` to its lines; usable before ``configure``."""
    logger: FilteringBoundLogger = structlog.get_logger(**fields)
    return logger


def context(**fields: str) -> AbstractContextManager[None]:
    """Add ``fields`` to every line of this task, and of tasks it starts, within a ``with`` block.

    ``with context(request_id=request_id, kernel=kernel_id): …``
    """
    return structlog.contextvars.bound_contextvars(**fields)


def redact(text: str) -> str:
    """Mask everything in ``text`` that looks like a credential."""
    lowered = text.lower()
    if any(hint in lowered for hint in _HINTS):  # the patterns are slow, and most lines are clean
        for pattern in _SECRETS:
            text = pattern.sub(rf"\g<keep>{_MASK}", text)
    return text


def clean(text: str, limit: int = FIELD_CHARACTERS) -> str:
    """Redact and escape ``text``, and cut it to ``limit`` characters."""
    # Masked before the cut, since half a token would not be recognised; the first cut bounds the
    # work.
    text = redact(text[: 4 * limit])
    if not text.isprintable():
        text = "".join(each if each.isprintable() else _escape(each) for each in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _processors(component: str) -> list[Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _add_process(component),
        _clean_fields,
    ]


def _add_process(component: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("component", component)
        event.setdefault("pid", os.getpid())
        return event

    return add


def _clean_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Bound, escape and redact every field of a line (a structlog processor)."""
    cleaned: EventDict = {}
    for name, value in event.items():
        if name.startswith("_"):  # structlog's own, taken out before the line is written
            cleaned[name] = value
        elif name == "exception" and isinstance(value, str):
            cleaned[name] = _clean_trace(value)
        else:
            cleaned[clean(name, 64)] = _clean_value(name, value, 0)
    return cleaned


def _clean_trace(trace: str) -> str:
    """Keep the traceback's end, where the error is; indented, so that it cannot forge a line."""
    lines = trace[-TRACE_CHARACTERS:].split("\n")
    return "\n".join("  " + clean(line, 2 * FIELD_CHARACTERS) for line in lines)


def _clean_value(name: str, value: object, depth: int) -> object:
    if _is_secret(name):
        return _MASK
    if depth < _DEPTH and isinstance(value, Mapping):
        names = list(value)[:_ITEMS]
        return {clean(_text(k), 64): _clean_value(_text(k), value[k], depth + 1) for k in names}
    if depth < _DEPTH and isinstance(value, list | tuple | set | frozenset):
        return [_clean_value(name, item, depth + 1) for item in list(value)[:_ITEMS]]
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and value.bit_length() < 64:  # noqa: PLR2004 -- what JSON readers take
        return value
    return clean(_text(value))


@functools.lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name[:FIELD_CHARACTERS]) is not None


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value[: 4 * FIELD_CHARACTERS]).decode("utf-8", "backslashreplace")
    try:
        return str(value)
    except Exception:  # noqa: BLE001 -- a log line must not fail over what it describes
        return f"<{type(value).__name__}>"


def _renderer(form: str, out: _Out) -> Processor:
    if form == "json" or (form == "auto" and not out.isatty()):
        return structlog.processors.JSONRenderer(serializer=_to_json)
    return structlog.dev.ConsoleRenderer(
        colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


def _to_json(event: Mapping[str, object], **_options: object) -> str:
    # For people: when, how bad, what; then the other fields in the order they were given.
    first = ("timestamp", "level", "component", "event")
    ordered = {name: event[name] for name in first if name in event}
    return msgspec.json.encode(ordered | dict(event)).decode()


def _configure_stdlib(number: int, shared: list[Processor], render: Processor, out: _Out) -> None:
    """Format lines of libraries that use ``logging`` in the same way."""
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.contextvars.merge_contextvars, _add_logger, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)


def _add_logger(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event["logger"] = record.name
    return event


class _Out:
    """A stream whose errors are ignored: a full disk must not end a kernel's holder."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.isatty()
        return False
