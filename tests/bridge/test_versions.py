from __future__ import annotations

import pytest

from relay.bridge.versions import FIRST, FOLDER, JOURNAL, RECORDS, Format
from relay.errors import OtherVersion

NEWER = Format("its books", writes=3, reads=(2, 3))


@pytest.mark.parametrize("known", [RECORDS, FOLDER, JOURNAL])
def test_what_is_written_is_read_and_so_is_what_bears_no_version(known: Format) -> None:
    for version in (known.writes, FIRST):
        known.check(version, "holder", "agent")


@pytest.mark.parametrize("version", [2, 3])
def test_several_versions_may_be_read(version: int) -> None:
    NEWER.check(version, "shelf", "reader")


@pytest.mark.parametrize("version", [-1, 0, 1, 4])
def test_what_is_not_known_is_refused_and_both_sides_are_named(version: int) -> None:
    with pytest.raises(OtherVersion) as caught:
        NEWER.check(version, "shelf", "reader")
    assert caught.value.message == (
        f"The shelf has version {version} of its books, the reader has version 3. "
        "One of them has to be upgraded."
    )
    assert (caught.value.http_status, caught.value.close_code) == (503, 1012)
