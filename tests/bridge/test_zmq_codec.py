from __future__ import annotations

import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.session import Session

from relay.bridge.messages import Buffer, Channel, Message
from relay.bridge.zmq_codec import DELIMITER, Signer
from relay.errors import BadKernelMessage

KEY = b"e4d1c0de-one-key-per-kernel"
PARTS = (b'{"msg_id": "1", "msg_type": "status"}', b"{}", b"{}", b'{"a": "\xc3\xa9"}')
MESSAGE = Message(Channel.IOPUB, *PARTS, (b"buffer", b""))
SCHEMES = ["hmac-sha256", "hmac-sha512", "hmac-md5"]


def jupyter(scheme: str = "hmac-sha256", key: bytes = KEY) -> Session:
    return Session(key=key, signature_scheme=scheme)


def message_of(multipart: list[bytes]) -> Message:
    _, _, header, parent, metadata, content, *buffers = multipart
    return Message(Channel.SHELL, header, parent, metadata, content, tuple(buffers))


def refused(parts: list[Buffer]) -> bool:
    try:
        Signer(KEY).parse(Channel.IOPUB, parts)
    except BadKernelMessage:
        return True
    return False


@pytest.mark.parametrize("scheme", SCHEMES)
@given(content=st.dictionaries(st.text(), st.text() | st.integers()))
def test_multiparts_are_jupyters_byte_for_byte(scheme: str, content: dict[str, Any]) -> None:
    session = jupyter(scheme)
    theirs = session.serialize(session.msg("execute_request", content))
    signer = Signer(KEY, scheme)
    message = message_of(theirs)
    assert signer.serialize(message) == theirs
    assert signer.parse(Channel.SHELL, theirs) == message
    assert json.loads(bytes(message.content)) == content


@pytest.mark.parametrize("scheme", SCHEMES)
def test_jupyter_verifies_what_is_signed_here(scheme: str) -> None:
    delimiter, *rest = map(bytes, Signer(KEY, scheme).serialize(MESSAGE))
    read = jupyter(scheme).deserialize(rest)
    assert delimiter == b"<IDS|MSG>"
    assert read["content"] == {"a": "é"}
    assert read["buffers"] == [b"buffer", b""]


@given(
    st.sampled_from(Channel),
    st.binary(max_size=64),
    st.tuples(*[st.binary(max_size=64)] * 4),
    st.lists(st.binary(max_size=64)),
    st.lists(st.binary().filter(lambda part: part != DELIMITER)),
)
def test_round_trip(
    channel: Channel,
    key: bytes,
    parts: tuple[bytes, bytes, bytes, bytes],
    buffers: list[bytes],
    identities: list[bytes],
) -> None:
    message = Message(channel, *parts, tuple(buffers))
    signer = Signer(key)
    assert signer.parse(channel, [*identities, *signer.serialize(message)]) == message


def test_the_parts_are_not_copied() -> None:
    big = memoryview(bytes(1_000_000))
    message = Message(Channel.SHELL, *PARTS[:3], big, (big,))
    parts = Signer(KEY).serialize(message)
    assert parts[5] is big
    assert parts[6] is big
    assert Signer(KEY).parse(Channel.SHELL, parts).content is big


def test_memoryviews_are_read_like_bytes() -> None:
    parts = [memoryview(part) for part in (b"kernel.status", *Signer(KEY).serialize(MESSAGE))]
    assert Signer(KEY).parse(Channel.IOPUB, parts) == MESSAGE


def test_a_delimiter_in_a_buffer_is_a_buffer() -> None:
    message = Message(Channel.IOPUB, *PARTS, (DELIMITER, b"x"))
    assert Signer(KEY).parse(Channel.IOPUB, Signer(KEY).serialize(message)) == message


def test_a_change_of_any_signed_byte_is_refused() -> None:
    parts = [bytes(part) for part in Signer(KEY).serialize(MESSAGE)]
    for index in range(1, 6):
        for place in range(len(parts[index])):
            changed = bytearray(parts[index])
            changed[place] ^= 1
            assert refused([*parts[:index], bytes(changed), *parts[index + 1 :]])


@pytest.mark.parametrize("signature", [b"", b"0" * 64, b"\xff" * 64])
def test_a_missing_or_foreign_signature_is_refused(signature: bytes) -> None:
    assert refused([DELIMITER, signature, *PARTS])
    assert refused(Signer(b"another key").serialize(MESSAGE))
    assert refused(Signer(b"").serialize(MESSAGE))


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def spy(left: Buffer, right: Buffer) -> bool:
        compared.append((bytes(left), bytes(right)))
        return True

    monkeypatch.setattr(hmac, "compare_digest", spy)
    parts = Signer(KEY).serialize(MESSAGE)
    assert not refused([DELIMITER, b"wrong", *parts[2:]])
    assert compared == [(b"wrong", parts[1])]


def test_parts_that_changed_places_are_refused() -> None:
    delimiter, signature, header, parent, metadata, content, *_ = Signer(KEY).serialize(MESSAGE)
    assert refused([delimiter, signature, parent, header, metadata, content])


@pytest.mark.parametrize("key", [KEY, b""])
def test_a_multipart_cut_after_any_part_is_refused(key: bytes) -> None:
    parts = [b"identity", *Signer(key).serialize(MESSAGE)]
    for end in range(7):
        with pytest.raises(BadKernelMessage):
            Signer(key).parse(Channel.IOPUB, parts[:end])
    assert Signer(key).parse(Channel.IOPUB, parts[:7]).buffers == ()


def test_a_multipart_without_delimiter_is_refused() -> None:
    with pytest.raises(BadKernelMessage, match="delimiter"):
        Signer(KEY).parse(Channel.IOPUB, Signer(KEY).serialize(MESSAGE)[1:])


def test_errors_quote_nothing() -> None:
    with pytest.raises(BadKernelMessage) as caught:
        Signer(KEY).parse(Channel.IOPUB, [DELIMITER, b"secret", b"secret", b"", b"", b""])
    assert "secret" not in caught.value.message


def test_without_a_key_nothing_is_signed_or_verified() -> None:
    parts = Signer(b"").serialize(MESSAGE)
    assert parts[1] == b""
    assert jupyter(key=b"").sign(list(PARTS)) == b""
    assert Signer(b"").parse(Channel.IOPUB, [DELIMITER, b"anything", *parts[2:]]) == MESSAGE


@pytest.mark.parametrize("key", [KEY, b""])
@pytest.mark.parametrize("scheme", ["", "sha256", "hmac", "hmac-", "hmac-nope", "rsa-sha256"])
def test_an_unknown_scheme_is_refused(scheme: str, key: bytes) -> None:
    with pytest.raises(ValueError, match=r"scheme|hash"):
        Signer(key, scheme)
