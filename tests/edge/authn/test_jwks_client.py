from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from relay import limits
from relay.config import JwtSettings, KeySettings, PemSettings
from relay.edge.authn.jwks_client import FetchedKeys, FileKeys, JwksEndpoint, Published
from relay.errors import AuthenticatorUnavailable
from relay.metrics import EdgeMetrics
from tests.jwts import SECRET, jwk, jwk_set, private_key, private_pem, public_pem
from tests.virtualtime import elapse, settle, virtual

ONE = jwk(private_key("EdDSA", "one"), kid="one")
TWO = jwk(private_key("EdDSA", "two"), kid="two")
COOL_DOWN = 10.0
REFRESH = 600.0
KEEP = 7200.0
PUBLISHED = KeySettings(jwks_url="https://login.example.org/keys")


def jwt(keys: KeySettings = PUBLISHED, issuer: str = "https://login.example.org") -> JwtSettings:
    return JwtSettings(issuer=issuer, audiences=["relay"], algorithms=["EdDSA"], keys=keys)


class Provider:
    """Publishes keys, or fails, and counts how often it was asked."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys = list(keys)
        self.fails: Exception | None = None
        self.document: bytes | None = None
        self.max_age: float | None = None
        self.takes = 0.0
        self.asked: list[float] = []

    async def __call__(self) -> Published:
        self.asked.append(asyncio.get_running_loop().time())
        document = self.document or jwk_set(*self.keys)
        await elapse(self.takes)
        if self.fails is not None:
            raise self.fails
        return Published(document, self.max_age)


def fetched(provider: Callable[[], Awaitable[Published]], metrics: EdgeMetrics) -> FetchedKeys:
    return FetchedKeys("corp", jwt(), provider, metrics)


async def knows(keys: FetchedKeys, kid: str | None) -> bool:
    return await keys.find(kid, "EdDSA") is not None


@pytest.fixture
def metrics() -> EdgeMetrics:
    return EdgeMetrics.local()


# How fresh they are


@virtual
async def test_many_who_come_at_once_wait_for_one_fetch() -> None:
    provider = Provider(ONE)
    provider.takes = 2.0
    async with fetched(provider, EdgeMetrics.local()) as keys:
        found = await asyncio.gather(*(knows(keys, "one") for _ in range(50)))
        assert all(found)
        assert provider.asked == [0.0]


@virtual
async def test_keys_are_fetched_before_anybody_asks() -> None:
    provider = Provider(ONE)
    async with fetched(provider, EdgeMetrics.local()) as keys:
        await asyncio.sleep(5)
        provider.takes = 3.0
        before = asyncio.get_running_loop().time()
        assert await knows(keys, "one")
        assert asyncio.get_running_loop().time() == before
        assert len(provider.asked) == 1


@virtual
async def test_old_keys_are_fetched_again_and_used_meanwhile() -> None:
    provider = Provider(ONE)
    async with fetched(provider, EdgeMetrics.local()) as keys:
        await asyncio.sleep(REFRESH - 1)
        assert len(provider.asked) == 1
        provider.takes = 3.0
        await asyncio.sleep(2)
        assert len(provider.asked) == 2
        before = asyncio.get_running_loop().time()
        assert await knows(keys, "one")
        assert asyncio.get_running_loop().time() == before


@virtual
async def test_a_key_that_was_withdrawn_is_unknown_after_a_refresh() -> None:
    provider = Provider(ONE, TWO)
    async with fetched(provider, EdgeMetrics.local()) as keys:
        await asyncio.sleep(1)
        provider.keys = [TWO]
        await asyncio.sleep(REFRESH - 2)
        assert await knows(keys, "one")
        await asyncio.sleep(2)
        assert await knows(keys, "two")
        assert not await knows(keys, "one")


@virtual
async def test_keys_that_were_all_withdrawn_are_gone() -> None:
    provider = Provider(ONE)
    async with fetched(provider, EdgeMetrics.local()) as keys:
        assert await knows(keys, "one")
        provider.keys = []
        await asyncio.sleep(REFRESH + 1)
        assert not await knows(keys, "one")


@pytest.mark.parametrize(
    ("max_age", "second"),
    [(None, 600.0), (60.0, 60.0), (0.0, 10.0), (9.0, 10.0), (86400.0, 600.0)],
)
def test_max_age_is_respected_within_bounds(max_age: float | None, second: float) -> None:
    @virtual
    async def scenario() -> None:
        provider = Provider(ONE)
        provider.max_age = max_age
        async with fetched(provider, EdgeMetrics.local()):
            await asyncio.sleep(second + 1)
            assert provider.asked == [0.0, second]

    scenario()


# Keys that are not there


@virtual
async def test_a_new_key_is_fetched_when_a_token_names_it() -> None:
    provider = Provider(ONE)
    async with fetched(provider, EdgeMetrics.local()) as keys:
        await asyncio.sleep(COOL_DOWN)
        provider.keys = [ONE, TWO]
        assert await knows(keys, "two")
        assert await knows(keys, "one")
        assert len(provider.asked) == 2


@virtual
async def test_a_flood_of_unknown_keys_makes_one_fetch_for_each_cool_down() -> None:
    provider = Provider(ONE)
    before = limits.counts["authentication.jwt.keys.cool_down"]
    async with fetched(provider, EdgeMetrics.local()) as keys:
        for second in range(35):
            flood = (knows(keys, f"{second}-{number}") for number in range(200))
            assert not any(await asyncio.gather(*flood))
            assert await knows(keys, "one")
            await asyncio.sleep(1)
        assert len(provider.asked) == 4
        assert {
            later - sooner
            for sooner, later in zip(provider.asked, provider.asked[1:], strict=False)
        } == {COOL_DOWN}
    assert limits.counts["authentication.jwt.keys.cool_down"] - before > 6000


@virtual
async def test_a_flood_while_a_fetch_is_slow_starts_no_other_and_holds_nobody_up() -> None:
    provider = Provider(ONE)
    async with fetched(provider, EdgeMetrics.local()) as keys:
        await asyncio.sleep(COOL_DOWN)
        provider.takes = 4.0
        async with asyncio.TaskGroup() as group:
            flood = [group.create_task(knows(keys, str(number))) for number in range(200)]
            await settle()
            before = asyncio.get_running_loop().time()
            assert await knows(keys, "one")
            assert asyncio.get_running_loop().time() == before
            # Clients that go away take nothing with them.
            for task in flood[:100]:
                task.cancel()
        assert not any(task.result() for task in flood[100:])
        assert len(provider.asked) == 2


@virtual
async def test_a_token_without_kid_may_bring_a_fetch_but_no_flood() -> None:
    provider = Provider(ONE, TWO)
    async with fetched(provider, EdgeMetrics.local()) as keys:
        await asyncio.sleep(COOL_DOWN)
        for _ in range(20):
            assert not await knows(keys, None)
        assert len(provider.asked) == 2


# Outages

ERRORS = [
    OSError("out"),
    TimeoutError(),
    ValueError("no"),
    aiohttp.ClientConnectionError("reset"),
    aiohttp.InvalidURL("x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_fetch_that_fails_takes_nothing_away(error: Exception) -> None:
    @virtual
    async def scenario() -> None:
        provider = Provider(ONE)
        async with fetched(provider, EdgeMetrics.local()) as keys:
            assert await knows(keys, "one")
            provider.fails = error
            await asyncio.sleep(REFRESH + KEEP - REFRESH - 1)
            assert len(provider.asked) > 100
            assert await knows(keys, "one")
            assert not await knows(keys, "two")
            provider.fails = None
            provider.keys = [TWO]
            await asyncio.sleep(COOL_DOWN + 1)
            assert await knows(keys, "two")
            assert not await knows(keys, "one")

    scenario()


@pytest.mark.parametrize("document", [b"{}", b"<html>", b'{"keys": 3}', b'{"keys": [3]}', b"\xff"])
def test_what_is_no_key_set_takes_nothing_away(document: bytes) -> None:
    @virtual
    async def scenario() -> None:
        provider = Provider(ONE)
        async with fetched(provider, EdgeMetrics.local()) as keys:
            assert await knows(keys, "one")
            provider.document = document
            await asyncio.sleep(REFRESH * 2)
            assert len(provider.asked) > 10
            assert await knows(keys, "one")

    scenario()


@virtual
async def test_keys_are_not_used_for_ever() -> None:
    provider = Provider(ONE)
    async with fetched(provider, EdgeMetrics.local()) as keys:
        assert await knows(keys, "one")
        provider.fails = OSError("out")
        with capture_logs() as lines:
            await asyncio.sleep(KEEP + 60)
        with pytest.raises(AuthenticatorUnavailable):
            await keys.find("one", "EdDSA")
        # One line for the row, not for each.
        assert [line["event"] for line in lines] == ["key_fetch_failed", "keys_expired"]


@virtual
async def test_without_keys_nobody_can_tell_and_everybody_may_try_again() -> None:
    provider = Provider(ONE)
    provider.fails = OSError("out")
    async with fetched(provider, EdgeMetrics.local()) as keys:
        for _ in range(25):
            with pytest.raises(AuthenticatorUnavailable) as caught:
                await keys.find("one", "EdDSA")
            await asyncio.sleep(1)
        assert (caught.value.http_status, caught.value.retry_after) == (503, 10)
        assert provider.asked == [0.0, 10.0, 20.0]
        provider.fails = None
        await asyncio.sleep(COOL_DOWN)
        assert await knows(keys, "one")


@virtual
async def test_a_fetch_that_hangs_is_given_up() -> None:
    provider = Provider(ONE)
    provider.takes = 1e6
    async with fetched(provider, EdgeMetrics.local()) as keys:
        with pytest.raises(AuthenticatorUnavailable):
            await keys.find("one", "EdDSA")
        assert asyncio.get_running_loop().time() == PUBLISHED.timeout


@virtual
async def test_it_ends_in_the_middle_of_a_fetch() -> None:
    provider = Provider(ONE)
    provider.takes = 1e6
    async with fetched(provider, EdgeMetrics.local()):
        await asyncio.sleep(1)
    assert len(asyncio.all_tasks()) == 1


# What is told


@virtual
async def test_fetches_failures_and_the_last_success_are_counted() -> None:
    metrics = EdgeMetrics.local()
    provider = Provider(ONE)
    provider.fails = OSError("out")

    def told() -> tuple[float, float, float]:
        return (
            metrics.key_fetches.labels("corp")._value.get(),
            metrics.key_fetch_failures.labels("corp")._value.get(),
            metrics.keys_fetched.labels("corp")._value.get(),
        )

    async with fetched(provider, metrics):
        await asyncio.sleep(1)
        assert told() == (1, 1, 0)
        provider.fails = None
        await asyncio.sleep(COOL_DOWN)
        fetches, failures, when = told()
        assert (fetches, failures) == (2, 1)
        assert when > 1.7e9


@virtual
async def test_keys_that_cannot_be_used_are_skipped_with_one_warning() -> None:
    provider = Provider(ONE, jwk(SECRET, kid="secret"), jwk(private_key("ES256"), kid="other"))
    with capture_logs() as lines:
        async with fetched(provider, EdgeMetrics.local()) as keys:
            assert await knows(keys, "one")
            assert not await knows(keys, "secret")
            assert await keys.find("secret", "HS256") is None
            await asyncio.sleep(REFRESH * 3)
    (skipped,) = [line for line in lines if line["event"] == "keys_skipped"]
    assert skipped["log_level"] == "warning"
    assert [problem.partition(":")[0] for problem in skipped["problems"]] == [
        "key 1 ('secret')",
        "key 2 ('other')",
    ]
    assert [line["kids"] for line in lines if line["event"] == "keys_fetched"] == [["one"]]
    assert SECRET.hex() not in str(lines)
    assert "k" + jwk(SECRET)["k"] not in str(lines)


# Files


def test_keys_in_files(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_bytes(jwk_set(ONE, TWO))
    (tmp_path / "one.pem").write_bytes(public_pem(private_key("EdDSA", "one")))
    (tmp_path / "secret").write_bytes(SECRET + b"\r\n")
    jwks = FileKeys.read(KeySettings(jwks_file=str(tmp_path / "keys.json")), ["EdDSA"])
    pem = PemSettings(file=str(tmp_path / "one.pem"), kid="one")
    for keys in (jwks, FileKeys.read(KeySettings(pem=[pem]), ["EdDSA"])):
        key = asyncio.run(keys.find("one", "EdDSA"))
        assert key is not None
        assert asyncio.run(keys.find("three", "EdDSA")) is None
    secret = FileKeys.read(KeySettings(secret=str(tmp_path / "secret")), ["HS256", "HS512"])
    found = asyncio.run(secret.find("any", "HS512"))
    assert found is not None
    assert found.material == SECRET


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (jwk_set(ONE, jwk(private_key("ES256"), kid="curve")), r"jwks_file: key 1 \('curve'\)"),
        (jwk_set(), "jwks_file: it has no keys"),
        (b"", "."),
        (b"{}", "not a JWK Set"),
    ],
)
def test_a_file_with_a_wrong_key_is_an_error_that_names_it(
    content: bytes, named: str, tmp_path: Path
) -> None:
    (tmp_path / "keys.json").write_bytes(content)
    with pytest.raises(ValueError, match=named):
        FileKeys.read(KeySettings(jwks_file=str(tmp_path / "keys.json")), ["EdDSA"])


def test_a_wrong_pem_or_secret_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "private.pem").write_bytes(private_pem(private_key("EdDSA", "one")))
    (tmp_path / "secret").write_bytes(b"short\n")
    private = PemSettings(file=str(tmp_path / "private.pem"))
    with pytest.raises(ValueError, match=r"pem: .*private\.pem: it is not one public key"):
        FileKeys.read(KeySettings(pem=[private]), ["EdDSA"])
    with pytest.raises(ValueError, match="secret: it has 5 bytes"):
        FileKeys.read(KeySettings(secret=str(tmp_path / "secret")), ["HS256"])
    with pytest.raises(OSError, match="none"):
        FileKeys.read(KeySettings(secret=str(tmp_path / "none")), ["HS256"])


# The issuer's website


class Site:
    """A web server on the loopback interface that says what it is told to."""

    def __init__(self) -> None:
        self.answers: dict[str, web.Response] = {}
        self.asked: list[str] = []
        self.url = ""

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path)
        answer = self.answers.get(request.path)
        return web.Response(status=404) if answer is None else answer

    def says(self, path: str, document: object, **headers: str) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.answers[path] = web.Response(body=body, headers=headers)


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    website = Site()
    runner = web.ServerRunner(web.Server(website.serve))
    await runner.setup()
    try:
        address = web.TCPSite(runner, "127.0.0.1", 0)
        await address.start()
        host, port = runner.addresses[0][:2]
        website.url = f"http://{host}:{port}"
        yield website
    finally:
        await runner.cleanup()


WELL_KNOWN = "/realm/.well-known/openid-configuration"


def discovering(url: str, **changes: Any) -> JwksEndpoint:
    settings = KeySettings(discovery=True, allow_http=True, **changes)
    return JwksEndpoint(jwt(settings, issuer=f"{url}/realm"))


async def test_keys_are_discovered() -> None:
    async with site() as there:
        says = {"issuer": f"{there.url}/realm", "jwks_uri": f"{there.url}/keys", "x": [1]}
        there.says(WELL_KNOWN, says)
        there.says("/keys", {"keys": []}, **{"Cache-Control": "public, max-age=60, x"})
        published = await discovering(there.url).fetch()
        assert published == Published(b'{"keys": []}', 60.0)
        assert there.asked == [WELL_KNOWN, "/keys"]


@pytest.mark.parametrize(
    "cache", ["no-store", "max-age=x", "max-age=-5", "x-max-age=5", "", "s-maxage=5"]
)
async def test_no_max_age_is_none(cache: str) -> None:
    async with site() as there:
        there.says("/keys", {"keys": []}, **{"Cache-Control": cache})
        url = KeySettings(jwks_url=f"{there.url}/keys", allow_http=True)
        assert (await JwksEndpoint(jwt(url)).fetch()).max_age is None
        assert there.asked == ["/keys"]


@pytest.mark.parametrize("issuer", ["", "/", "/realm/", "/REALM", "/realm2", "/real", None, ["x"]])
async def test_a_document_of_another_issuer_is_not_believed(issuer: Any) -> None:
    async with site() as there:
        other = f"{there.url}{issuer}" if isinstance(issuer, str) else issuer
        there.says(WELL_KNOWN, {"issuer": other, "jwks_uri": f"{there.url}/keys"})
        with pytest.raises(ValueError, match="another issuer's"):
            await discovering(there.url).fetch()
        assert there.asked == [WELL_KNOWN]


@pytest.mark.parametrize(
    "uri",
    [
        None,
        3,
        "",
        "/keys",
        "//127.0.0.1/keys",
        "http://example.org/keys",
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1.example.org/keys",
        "http://localhost@example.org/keys",
        "https://user:secret@example.org/keys",
        "file:///etc/passwd",
        "ftp://127.0.0.1/keys",
        "data:,{}",
        "http://[::1",
        "https://example.org/\n",
    ],
)
async def test_discovery_leads_to_https_only(uri: Any) -> None:
    async with site() as there:
        there.says(WELL_KNOWN, {"issuer": f"{there.url}/realm", "jwks_uri": uri})
        with pytest.raises(ValueError, match=r"names no keys|expected|Invalid"):
            await discovering(there.url).fetch()


async def test_plain_http_is_refused_even_here_unless_it_is_allowed() -> None:
    async with site() as there:
        there.says(WELL_KNOWN, {"issuer": f"{there.url}/realm", "jwks_uri": f"{there.url}/keys"})
        strict = jwt(KeySettings(jwks_url="https://example.org"), issuer=f"{there.url}/realm")
        with pytest.raises(ValueError, match="expected https"):
            KeySettings(jwks_url=f"{there.url}/keys")
        with pytest.raises(ValueError, match="expected https"):
            KeySettings(jwks_url="http://example.org/keys", allow_http=True)
        with pytest.raises(ValueError, match="expected https"):
            jwt(KeySettings(discovery=True), issuer=strict.issuer)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with site() as there:
        there.says("/other", {"keys": []})
        there.answers["/keys"] = web.Response(status=status, headers={"Location": "/other"})
        url = KeySettings(jwks_url=f"{there.url}/keys", allow_http=True)
        with pytest.raises(ValueError, match=f"answered with {status}"):
            await JwksEndpoint(jwt(url)).fetch()
        assert there.asked == ["/keys"]


async def test_a_large_document_is_not_read() -> None:
    async with site() as there:
        there.says("/keys", b" " * 1001)
        there.says("/fits", b" " * 1000)
        before = limits.counts["authentication.jwt.keys.document_bytes"]
        for path in ("/keys", "/fits"):
            settings = KeySettings(jwks_url=there.url + path, allow_http=True, document_bytes=1000)
            if path == "/fits":
                assert len((await JwksEndpoint(jwt(settings)).fetch()).document) == 1000
            else:
                with pytest.raises(ValueError, match=r"keys\.document_bytes"):
                    await JwksEndpoint(jwt(settings)).fetch()
        assert limits.counts["authentication.jwt.keys.document_bytes"] - before == 1


async def test_a_compressed_document_stays_as_it_is() -> None:
    async with site() as there:
        squeezed = b"\x1f\x8b\x08" + b"\0" * 20
        there.says("/keys", squeezed, **{"Content-Encoding": "gzip"})
        url = KeySettings(jwks_url=f"{there.url}/keys", allow_http=True)
        assert (await JwksEndpoint(jwt(url)).fetch()).document == squeezed
