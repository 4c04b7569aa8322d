from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth import audit
from relay.auth.audit import (
    AuditEvent,
    AuditNote,
    ChainBroken,
    ChainVerifier,
    HashChain,
    event_for,
)
from relay.log import clean
from relay.model import Identity, Principal

NOW = 1_800_000_000.25
NOTHING = hashlib.sha256().hexdigest()


def note(event: AuditEvent = AuditEvent.KERNEL_STARTED, **fields: Any) -> AuditNote:
    return AuditNote(time=NOW, event=event, **fields)


def chained(notes: Iterable[AuditNote], chain: HashChain | None = None) -> list[bytes]:
    chain = HashChain() if chain is None else chain
    lines = []
    for each in notes:
        line = chain.format(each, clean)
        chain.advance(line)
        lines.append(line)
    return lines


def chain_of(length: int) -> list[bytes]:
    begun = note(AuditEvent.CHAIN_BEGUN)
    return chained([begun, *(note(request_id=str(number)) for number in range(1, length))])


def verify(*files: list[bytes], noted: str = "") -> tuple[ChainVerifier, ChainBroken | None]:
    verifier = ChainVerifier(noted)
    for lines in files:
        broken = verifier.read(lines)
        if broken is not None:
            return verifier, broken
    return verifier, None


def first_wrong(*files: list[bytes]) -> int:
    _, broken = verify(*files)
    assert broken is not None
    return broken.line


# --- what leaves a line ---


@pytest.mark.parametrize(
    ("act", "status", "event"),
    [
        (None, 401, AuditEvent.LOGIN_REFUSED),
        (AuditEvent.KERNEL_STARTED, 401, AuditEvent.LOGIN_REFUSED),
        (None, 200, None),
        (None, 403, AuditEvent.REFUSED),
        (None, 429, AuditEvent.REFUSED),
        (None, 404, None),
        (None, 503, None),
        (None, 400, None),
        (None, 500, None),
        (AuditEvent.KERNEL_STARTED, 201, AuditEvent.KERNEL_STARTED),
        (AuditEvent.KERNEL_STARTED, 400, AuditEvent.REFUSED),
        (AuditEvent.KERNEL_STARTED, 403, AuditEvent.REFUSED),
        (AuditEvent.KERNEL_STARTED, 500, AuditEvent.FAILED),
        (AuditEvent.KERNEL_STARTED, 503, AuditEvent.FAILED),
        (AuditEvent.KERNEL_STOPPED, 204, AuditEvent.KERNEL_STOPPED),
        (AuditEvent.KERNEL_STOPPED, 404, AuditEvent.REFUSED),
        (AuditEvent.CHANNELS_OPENED, 101, AuditEvent.CHANNELS_OPENED),
        (AuditEvent.CHANNELS_OPENED, 404, AuditEvent.REFUSED),
        (AuditEvent.KERNEL_INTERRUPTED, 204, AuditEvent.KERNEL_INTERRUPTED),
        (AuditEvent.KERNEL_RESTARTED, 200, AuditEvent.KERNEL_RESTARTED),
        (AuditEvent.GRANTED, 204, AuditEvent.GRANTED),
        (AuditEvent.GRANT_TAKEN, 204, AuditEvent.GRANT_TAKEN),
    ],
)
def test_which_answers_leave_a_line(
    act: AuditEvent | None, status: int, event: AuditEvent | None
) -> None:
    assert event_for(act, status) is event


def test_somebody_known_on_a_cluster_that_is_not_theirs_leaves_a_line() -> None:
    assert event_for(None, 404, outside=True) is AuditEvent.REFUSED
    assert event_for(None, 400, outside=True) is None
    assert event_for(None, 200, outside=True) is None


# --- a line ---


def test_a_line_has_its_place_its_time_and_what_is_not_empty() -> None:
    chain = HashChain()
    line = chain.format(note(AuditEvent.CHAIN_BEGUN, status=0, reason=""), clean)
    assert json.loads(line) == {
        "seq": 0,
        "prev": NOTHING,
        "time": "2027-01-15T08:00:00.250000Z",
        "event": "chain-begun",
    }
    assert line.endswith(b"}\n")
    chain.advance(line)
    following = json.loads(chain.format(note(principal="token:alice", status=201), clean))
    assert following["seq"] == 1
    assert following["prev"] == hashlib.sha256(line[:-1]).hexdigest()
    assert (following["principal"], following["status"]) == ("token:alice", 201)


def test_who_it_was() -> None:
    identity = Identity(
        principal=Principal("token", "alice"), via="corp", credential="abc", groups=frozenset("g")
    )
    assert audit.identity_fields(identity) == {
        "principal": "token:alice",
        "via": "corp",
        "credential": "abc",
    }
    assert audit.identity_fields(None) == {}


TEXTS = [field.name for field in msgspec.structs.fields(AuditNote) if field.type is str]
NASTY = st.text(st.characters(exclude_categories=[])) | st.sampled_from(
    [
        "\n",
        '"}\n{"seq":0',
        "\x00\x1b[31m",
        "\u2028",
        "\ud800",
        "x" * 10_000,
        "😀" * 10_000,
        "\\" * 300,
    ]
)


@given(st.dictionaries(st.sampled_from(TEXTS), NASTY))
def test_whatever_is_in_the_fields_a_line_is_one_line_and_bounded(fields: dict[str, Any]) -> None:
    lines = chained([note(AuditEvent.CHAIN_BEGUN), note(**fields), note()])
    for line in lines:
        assert line.count(b"\n") == 1
        assert len(line) < audit.LINE_BYTES
        read = json.loads(line)
        assert all(len(value) <= 256 for value in read.values() if isinstance(value, str))
        assert all(value.isprintable() for value in read.values() if isinstance(value, str))
    assert verify(lines)[1] is None


@pytest.mark.parametrize("field", TEXTS)
def test_no_field_shows_a_token(field: str) -> None:
    for secret in ("relay_" + "a1" * 20, "eyJhbGciOi.eyJzdWIiOiJh.c2lnbmF0dXJl"):
        fields: dict[str, Any] = {field: f"x {secret} y"}
        (line,) = chained([note(**fields)])
        assert secret.encode()[6:] not in line


# --- a chain that goes on ---


def test_a_chain_goes_on_after_the_last_line_of_a_file() -> None:
    lines = chain_of(3)
    chain = HashChain.after(b"".join(lines))
    assert chain is not None
    assert not chain.torn
    assert verify([*lines, *chained([note()], chain)])[1] is None


def test_a_chain_goes_on_after_a_tail_that_begins_within_a_line() -> None:
    lines = chain_of(3)
    chain = HashChain.after(b"".join(lines)[20:])
    assert chain is not None
    assert (chain.seq, chain.torn) == (2, False)
    assert verify([*lines, *chained([note()], chain)])[1] is None


def test_a_last_line_without_its_line_feed_is_whole() -> None:
    lines = chain_of(3)
    chain = HashChain.after(b"".join(lines)[:-1])
    assert chain is not None
    assert not chain.torn
    assert verify([*lines, *chained([note()], chain)])[1] is None


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_line_is_noted_and_stays_part_of_the_chain(length: int, cut: int) -> None:
    lines = chain_of(length)
    whole, remains = lines[:-1], lines[-1][:cut]
    chain = HashChain.after(b"".join(whole) + remains)
    assert chain is not None
    assert chain.torn
    file = [*whole, remains + b"\n", *chained([note(AuditEvent.LINE_TORN), note()], chain)]
    verifier, broken = verify(file)
    assert (broken, verifier.torn, verifier.lines) == (None, 1, length + 1)
    file[length - 1] = remains[:-1] + b"!\n"
    assert verify(file)[1] is not None


def test_even_the_note_of_a_torn_line_may_be_torn() -> None:
    lines = chain_of(3)
    remains = [b'{"seq\n', b'{"seq":3,"prev":"ab\n']
    after = chained(
        [note(AuditEvent.LINE_TORN), note()], HashChain.after(b"".join([*lines, *remains]))
    )
    verifier, broken = verify([*lines, *remains, *after])
    assert (broken, verifier.torn) == (None, 2)
    assert first_wrong([*lines, remains[1], *after]) == 3
    # The same in one life of the writer.
    chain = HashChain()
    for line in lines:
        chain.advance(line)
    for each in remains:
        chain.add_remains(each[:-1])
    assert chained([note(AuditEvent.LINE_TORN), note()], chain) == after


@pytest.mark.parametrize("text", [b"hello\n", b'{"a":1}\n', b"\x00" * 100, b"\n", b'{"seq":1,"pr'])
def test_a_file_of_something_else_is_not_gone_on_with(text: bytes) -> None:
    assert HashChain.after(text) is None


# --- what verifying finds ---


def test_an_untouched_chain_is_in_order() -> None:
    lines = chain_of(5)
    verifier, broken = verify(lines)
    assert broken is None
    assert (verifier.lines, verifier.first) == (5, 0)
    assert verifier.begins == verifier.ends == "2027-01-15T08:00:00.250000Z"
    assert verifier.hash == hashlib.sha256(lines[-1][:-1]).hexdigest()


@pytest.mark.parametrize("line", [1, 2, 4])
def test_a_changed_line_is_named(line: int) -> None:
    lines = chain_of(5)
    lines[line - 1] = lines[line - 1].replace(b"2027", b"2026")
    assert first_wrong(lines) == line


@pytest.mark.parametrize("line", [2, 3, 5])
def test_a_line_that_became_garbage_is_named(line: int) -> None:
    lines = chain_of(5)
    lines[line - 1] = b"garbage\n"
    assert first_wrong(lines) == line


@pytest.mark.parametrize("line", [2, 3, 4])
def test_the_line_after_a_missing_one_is_named(line: int) -> None:
    lines = chain_of(5)
    del lines[line - 1]
    assert first_wrong(lines) == line


@pytest.mark.parametrize("line", [2, 4])
def test_two_lines_that_changed_places_are_named(line: int) -> None:
    lines = chain_of(5)
    lines[line - 1], lines[line] = lines[line], lines[line - 1]
    assert first_wrong(lines) == line


def test_a_line_that_was_put_in_shows_at_the_next() -> None:
    lines = chain_of(5)
    chain = HashChain.after(b"".join(lines[:2]))
    lines[2:2] = chained([note(principal="token:mallory")], chain)
    assert first_wrong(lines) == 4


def test_a_repeated_line_is_named() -> None:
    lines = chain_of(5)
    lines.insert(3, lines[2])
    assert first_wrong(lines) == 4


def test_a_missing_beginning_is_named() -> None:
    _, broken = verify(chain_of(5)[2:])
    assert broken == ChainBroken(1, "the lines before this one are missing")


def test_a_forged_line_with_the_number_of_the_next_but_another_hash_is_found() -> None:
    lines = chain_of(5)
    forged = json.loads(lines[2]) | {"prev": "0" * 64}
    lines[2] = msgspec.json.encode(forged) + b"\n"
    assert first_wrong(lines) in {2, 3}


def test_half_a_line_at_the_end_is_named() -> None:
    lines = chain_of(5)
    assert first_wrong([*lines[:4], lines[4][:40]]) == 5


def test_a_chain_that_was_cut_at_its_end_lacks_the_noted_line() -> None:
    lines = chain_of(5)
    noted = verify(lines)[0].hash
    assert verify(lines, noted=noted)[0].found_expected
    more = chained([note()], HashChain.after(b"".join(lines)))
    assert verify([*lines, *more], noted=noted)[0].found_expected
    verifier, broken = verify(lines[:4], noted=noted)
    assert (broken, verifier.found_expected) == (None, False)
    assert not verify(lines)[0].found_expected


def rotated() -> tuple[list[bytes], list[bytes]]:
    chain = HashChain()
    old = chained([note(AuditEvent.CHAIN_BEGUN), note(), note()], chain)
    return old, chained([note(AuditEvent.CHAIN_CONTINUED), note()], chain)


def test_files_of_one_chain_are_in_order() -> None:
    old, new = rotated()
    verifier, broken = verify(old, new)
    assert (broken, verifier.lines, verifier.first) == (None, 5, 0)


def test_a_newer_file_alone_says_where_it_begins() -> None:
    _, new = rotated()
    verifier, broken = verify(new)
    assert (broken, verifier.lines, verifier.first) == (None, 2, 3)


def test_files_that_do_not_follow_each_other_are_found() -> None:
    old, new = rotated()
    assert verify(new, old)[1] is not None
    assert verify(old[:2], new)[1] is not None
    assert verify(old, new[1:])[1] is not None
    assert verify(old, chain_of(2))[1] is not None
    changed = [*old[:2], old[2].replace(b"2027", b"2026")]
    _, broken = verify(changed, new)
    assert broken is not None
    assert re.search("end of the file before", broken.reason)


@given(st.data())
def test_any_change_of_any_byte_but_in_the_last_line_is_found(data: st.DataObject) -> None:
    file = b"".join(chain_of(4))
    end = file.rindex(b"\n", 0, -1)
    place = data.draw(st.integers(0, end - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != file[place]))
    changed = file[:place] + bytes([byte]) + file[place + 1 :]
    lines = [line + b"\n" for line in changed.removesuffix(b"\n").split(b"\n")]
    assert verify(lines)[1] is not None
