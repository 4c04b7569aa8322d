from __future__ import annotations

from collections.abc import Collection
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.auth.ownership import (
    Access,
    Grant,
    KernelOwnership,
    access,
    no_such_kernel,
    parse_grantee,
)
from relay.auth.policy import Action, Rights
from relay.errors import Forbidden, NotFound
from relay.model import Principal

ADA, BOB = Principal("token", "ada"), Principal("token", "bob")
KERNEL_ID = "0a0a0a0a-0000-4000-8000-000000000000"
ON_KERNELS: Final = frozenset(Action) - {Action.ADMIN}
EVERYTHING = Rights(dict.fromkeys(ON_KERNELS))
ADMIN = Rights(dict.fromkeys(Action))

# By hand, and apart from what is tested: what each of them may do whose rights cover everything.
ALL = {"list", "start", "use", "view", "interrupt", "stop"}
TOKEN_REQUIRED: Final[dict[str, tuple[Principal, Rights, dict[str, Grant], set[str]]]] = {
    "owner": (ADA, EVERYTHING, {}, ALL),
    "stranger": (BOB, EVERYTHING, {}, set()),
    "admin": (BOB, ADMIN, {}, ALL),
    "user": (BOB, EVERYTHING, {"token:bob": Grant.USE}, {"use", "view", "interrupt"}),
    "viewer": (BOB, EVERYTHING, {"token:bob": Grant.VIEW}, {"view"}),
    "namesake": (Principal("jwt", "ada"), EVERYTHING, {"token:bob": Grant.USE}, set()),
    "namesake of a viewer": (Principal("jwt", "bob"), EVERYTHING, {"token:bob": Grant.USE}, set()),
    "admin without more": (BOB, Rights({Action.ADMIN: None}), {}, set()),
}


def kernel(grants: dict[str, Grant] | None = None) -> KernelOwnership:
    return KernelOwnership(owner="token:ada", kernelspec="python3", grants=grants or {})


def allows(found: Access, actions: Collection[Action]) -> int:
    """The status that it comes to."""
    try:
        found.require(actions, KERNEL_ID)
    except (NotFound, Forbidden) as error:
        return error.http_status
    return 200


@pytest.mark.parametrize("who", TOKEN_REQUIRED)
@pytest.mark.parametrize("action", sorted(ON_KERNELS))
def test_who_may_do_what(who: str, action: Action) -> None:
    principal, rights, grants, expected = TOKEN_REQUIRED[who]
    found = access(principal, rights, kernel(grants))
    unseen = expected.isdisjoint({"view", "use"})
    denied = 404 if unseen else 403
    assert allows(found, {action}) == (200 if action.value in expected else denied)


@pytest.mark.parametrize("who", TOKEN_REQUIRED)
@pytest.mark.parametrize("covered", Action)
def test_nobody_may_more_than_their_rights_cover(who: str, covered: Action) -> None:
    principal, rights, grants, expected = TOKEN_REQUIRED[who]
    found = access(principal, rights.restricted_to({covered, Action.ADMIN}), kernel(grants))
    assert found.actions == {covered} & expected


@pytest.mark.parametrize("who", TOKEN_REQUIRED)
def test_rights_to_another_kernelspec_are_none_to_this(who: str) -> None:
    principal, rights, grants, _ = TOKEN_REQUIRED[who]
    other = Rights(
        {a: None if a is Action.ADMIN else frozenset({"ir"}) for a in rights.kernelspecs}
    )
    assert not access(principal, other, kernel(grants)).actions


def test_a_kernelspecs_name_is_matched_exactly() -> None:
    for name in ("Python3", "python", "python33", "python3 ", "*", ""):
        rights = Rights({Action.USE: frozenset({name})})
        assert not access(ADA, rights, kernel()).can_see


def test_who_may_only_stop_their_kernel_does_not_see_it() -> None:
    found = access(ADA, Rights({Action.STOP: None}), kernel())
    assert allows(found, {Action.STOP}) == 200
    assert allows(found, {Action.INTERRUPT}) == 404


@pytest.mark.parametrize("who", TOKEN_REQUIRED)
def test_only_owner_and_admin_say_who_else(who: str) -> None:
    principal, rights, grants, expected = TOKEN_REQUIRED[who]
    found = access(principal, rights, kernel(grants))
    if expected == ALL:
        found.require_administration(KERNEL_ID)
    else:
        with pytest.raises(Forbidden if expected else NotFound):
            found.require_administration(KERNEL_ID)


@pytest.mark.parametrize(
    ("who", "views_only", "by_grant"),
    [
        ("owner", False, False),
        ("admin", False, False),
        ("user", False, True),
        ("viewer", True, True),
        ("stranger", True, False),
    ],
)
def test_who_only_listens_and_who_can_lose_it(who: str, views_only: bool, by_grant: bool) -> None:
    principal, rights, grants, _ = TOKEN_REQUIRED[who]
    found = access(principal, rights, kernel(grants))
    assert (found.views_only, found.by_grant) == (views_only, by_grant)


def test_strangers_hear_the_words_of_a_kernel_that_is_not_there() -> None:
    with pytest.raises(NotFound) as caught:
        access(BOB, EVERYTHING, kernel()).require({Action.STOP}, KERNEL_ID)
    assert caught.value.message == no_such_kernel(KERNEL_ID).message
    with pytest.raises(NotFound) as caught:
        access(BOB, EVERYTHING, kernel()).require_administration(KERNEL_ID)
    assert caught.value.message == no_such_kernel(KERNEL_ID).message


names = st.text(min_size=1, max_size=5)
some_rights = st.builds(
    Rights,
    st.dictionaries(
        st.sampled_from(sorted(ON_KERNELS)),
        st.none() | st.frozensets(st.sampled_from(["python3", "ir", ""]), max_size=2),
    ),
)
some_grants = st.dictionaries(names, st.sampled_from(Grant), max_size=3)


@given(name=names, owner=names, grants=some_grants)
def test_without_rights_nobody_may_anything(
    name: str, owner: str, grants: dict[str, Grant]
) -> None:
    someone = Principal("token", name)
    for each in (owner, str(someone)):
        possession = KernelOwnership(
            owner=each, kernelspec="python3", grants=grants | {str(someone): Grant.USE}
        )
        assert access(someone, Rights(), possession).actions == frozenset()


@given(rights=some_rights, owner=names, name=names, grants=some_grants)
def test_without_a_grant_others_may_nothing(
    rights: Rights, owner: str, name: str, grants: dict[str, Grant]
) -> None:
    someone = Principal("token", name)
    grants.pop(str(someone), None)
    possession = KernelOwnership(owner=f"hub:{owner}", kernelspec="python3", grants=grants)
    assert access(someone, rights, possession) == Access()


@given(rights=some_rights, grant=st.sampled_from(Grant))
def test_a_grant_is_never_more_than_an_owners_rights(rights: Rights, grant: Grant) -> None:
    granted = access(BOB, rights, kernel({"token:bob": grant}))
    assert granted.actions <= access(ADA, rights, kernel()).actions
    assert not granted.can_administer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bob", BOB),
        ("token:bob", BOB),
        ("hub:bob", Principal("hub", "bob")),
        ("hub:a:b c", Principal("hub", "a:b c")),
        ("ada lovelace", Principal("token", "ada lovelace")),
    ],
)
def test_whom_a_path_names(text: str, expected: Principal) -> None:
    assert parse_grantee(text, "token") == expected


@pytest.mark.parametrize("text", ["", ":", "hub:", ":bob"])
def test_who_is_nobody(text: str) -> None:
    with pytest.raises(ValueError, match="principal"):
        parse_grantee(text, "token")
