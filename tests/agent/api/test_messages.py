from __future__ import annotations

import asyncio
import json
import os
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.agent.api.messages import JournalMessages, MessagesQuery, message_line, parse
from relay.agent.holders.client import AdmittedPrincipal, HolderEndpoint
from relay.bridge.messages import Channel
from relay.bridge.records import Entry, RecordKind, record
from relay.config import PastSettings
from relay.errors import BadRequest, OtherVersion
from relay.routing.paths import parse_target
from relay.streams import read_record

SETTINGS = PastSettings(limit=10, max_limit=100)


def wanted(query: str) -> MessagesQuery:
    return parse(parse_target(f"/x?{query}"), SETTINGS)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", MessagesQuery(None, 0, 10, follow=False, heartbeat=0)),
        ("since=12", MessagesQuery(None, 12, 10, follow=False, heartbeat=0)),
        ("since=0123456789ab-7", MessagesQuery("0123456789ab", 7, 10, follow=False, heartbeat=0)),
        ("limit=100&follow=false", MessagesQuery(None, 0, 100, follow=False, heartbeat=0)),
        # Who follows wants all that comes.
        ("follow=true", MessagesQuery(None, 0, None, follow=True, heartbeat=0)),
        ("follow=true&limit=3", MessagesQuery(None, 0, 3, follow=True, heartbeat=0)),
        (
            "follow=true&heartbeat=15.000000",
            MessagesQuery(None, 0, None, follow=True, heartbeat=15),
        ),
        # Who does not follow is never kept waiting.
        ("heartbeat=15.0", MessagesQuery(None, 0, 10, follow=False, heartbeat=0)),
        ("token=x&_=1", MessagesQuery(None, 0, 10, follow=False, heartbeat=0)),
    ],
)
def test_what_a_query_asks_for(query: str, found: MessagesQuery) -> None:
    assert wanted(query) == found


@pytest.mark.parametrize(
    "query",
    [
        "since=",
        "since=x",
        "since=-1",
        "since=1.0",
        "since=%20%31",
        "since=0123456789AB-7",
        "since=0123456789ab-",
        "since=0123456789ab",
        "since=" + "9" * 19,
        "since=1&since=1",
        "limit=",
        "limit=0",
        "limit=-1",
        "limit=101",
        "limit=1e1",
        "limit=1&limit=1",
        "follow=",
        "follow=1",
        "follow=True",
        "follow=true&follow=true",
    ],
)
def test_odd_parameters_are_refused(query: str) -> None:
    with pytest.raises(BadRequest, match=query.partition("=")[0]):
        wanted(query)


def line(entry: Entry) -> bytes:
    return b"".join(map(bytes, message_line("e-1", entry)))


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
encoders: Any = st.sampled_from(
    [
        json.dumps,
        lambda value: json.dumps(value, ensure_ascii=False),
        # Some kernels write their JSON on several lines.
        lambda value: json.dumps(value, indent=2).replace("\n", "\r\n"),
    ]
)


@given(st.lists(values, min_size=4, max_size=4), encoders, st.lists(st.binary(), max_size=3))
def test_a_message_is_one_line_and_comes_back(
    parts: list[Any], encode: Callable[[Any], str], buffers: list[bytes]
) -> None:
    raw = [encode(part).encode("utf-8", "surrogatepass") for part in parts]
    found = line(Entry(1, Channel.IOPUB, (*raw, *buffers)))
    assert found.count(b"\n") == 1
    assert found.endswith(b"\n")
    assert b"\r" not in found
    read = json.loads(found.decode("utf-8", "surrogatepass"))
    names = ("header", "parent_header", "metadata", "content")
    assert [read[name] for name in names] == parts
    assert (read["seq"], read["channel"]) == ("e-1", "iopub")
    assert [b64decode(each) for each in read["buffers"]] == buffers


@pytest.mark.parametrize("size", [3 * 16 * 1024 + extra for extra in (-1, 0, 1, 2)])
def test_a_large_buffer_is_one_text(size: int) -> None:
    buffer = bytes(number % 251 for number in range(size))
    found = line(Entry(1, Channel.IOPUB, (b"{}", b"{}", b"{}", b"{}", buffer)))
    (text,) = json.loads(found)["buffers"]
    assert b64decode(text, validate=True) == buffer


@pytest.mark.parametrize(
    "answer",
    [
        record(RecordKind.READING, b'{"version":2,"journals":{}}'),
        record(RecordKind.CLOSE, b'{"version":2,"code":1012,"reason":"no"}'),
    ],
)
async def test_a_holder_of_another_version_is_told_apart_from_one_that_is_away(
    tmp_path: Path, answer: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await read_record(reader, 1000))[0] is RecordKind.READ
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    request: Any = None
    past = JournalMessages(SETTINGS, message_bytes=1000, max_record=1000)
    with pytest.raises(OtherVersion, match=r"holder has version 2 of .* agent has version 1\."):
        await past.answer(
            request,
            parse_target("/x"),
            HolderEndpoint(tmp_path / "s", os.geteuid()),
            AdmittedPrincipal("token:ada"),
            "r",
        )
    server.close()
