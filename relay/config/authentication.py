"""The settings that say who may come in: one frozen struct per authenticator."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from relay.config.jupyterhub import JupyterHubSettings
from relay.config.values import (
    A_DAY,
    KIB,
    AuthenticatorName,
    ClaimPath,
    FilePath,
    JwksFile,
    Name,
    PrincipalName,
    Seconds,
    SecretFile,
    Size,
    WebUrl,
    check_fetched,
    check_web_url,
)
from relay.model import Principal

ServerName = Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")]


class TokenSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Static tokens, which ``relay token`` makes; their authenticator is called ``token``."""

    file: SecretFile
    """JSON file: the hashes of the tokens, and whose they are; read again when it changes."""
    look_interval: Annotated[float, Meta(gt=0, le=60)] = 0.5
    """Seconds between two looks at whether the file has changed."""


class PathTokenSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens in URLs' paths, ``/t/<token>/<cluster>/…``: for WebSockets of clients without headers.

    They are in the file of the static tokens, and are no such tokens.
    """

    max_lifetime: Seconds = 43_200.0
    """Seconds; a path token that was made for longer is refused."""


class PemSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A public key in a file."""

    file: FilePath
    """PEM file: one public key, RSA or on one of the curves P-256, P-384, P-521 and Ed25519."""
    kid: Name | None = None
    """What tokens call it; by default it is for those whose ``kid`` no other key has."""


class KeySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the keys are that an issuer's tokens are signed with: one of the first five."""

    discovery: bool = False
    """Whether to ask the issuer (OpenID Connect Discovery) where it publishes its keys."""
    jwks_url: WebUrl | None = None
    """Where it publishes them."""
    jwks_file: JwksFile | None = None
    """JSON file: a JWK Set; for HMAC with the secrets in it."""
    pem: list[PemSettings] = []
    """Public keys in files of their own."""
    secret: SecretFile | None = None
    """File: an HMAC secret, as many bytes as the hash has or more. A line's end at its end is not
    part of it."""
    ca: FilePath | None = None
    """PEM file: the authorities that the issuer's certificate may come from; by default the
    system's."""
    refresh: Seconds = 600.0
    """Seconds after which published keys are fetched again, or sooner where the issuer says so: a
    key that it withdraws is believed no longer than this."""
    cool_down: Seconds = 10.0
    """Seconds between two fetches at the least, whatever keys tokens name."""
    keep: Annotated[float, Meta(ge=3600, le=A_DAY)] = 7200.0
    """Seconds that keys which were fetched are used while the issuer does not answer."""
    timeout: Seconds = 5.0
    """Seconds for a fetch, discovery and all."""
    document_bytes: Size = 256 * KIB
    """Bytes of each document that is fetched; beyond, the fetch has failed."""
    allow_http: bool = False
    """Whether URLs may be ``http`` on the loopback interface. For tests."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless there is one source, and a safe way to it."""
        sources = (self.discovery, self.jwks_url, self.jwks_file, self.pem, self.secret)
        if sum(map(bool, sources)) != 1:
            raise ValueError("set one of discovery, jwks_url, jwks_file, pem and secret")
        if self.jwks_url is not None:
            check_fetched(self.jwks_url, allow_http=self.allow_http)
        if len({each.kid for each in self.pem}) < len(self.pem):
            raise ValueError("pem: two keys need two different kids")


Symmetric = Literal["HS256", "HS384", "HS512"]
Asymmetric = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]


class ClaimSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which claims say what; a dot leads into an object, as in ``realm_access.roles``."""

    user: ClaimPath = "sub"
    """The user's name. It should be one that the issuer gives to nobody else later."""
    groups: ClaimPath | None = None
    """The user's groups: a list of names, or one name; by default there are none."""
    scopes: ClaimPath | None = None
    """What the token is limited to: a list, or a text with spaces. Where this is set, a token
    without scopes is refused; by default tokens are not limited."""


class JwtSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JWTs of one issuer."""

    issuer: Name
    """What their ``iss`` is, exactly; for ``keys.discovery`` a URL."""
    audiences: list[Name]
    """Of their ``aud`` one has to be among these, exactly."""
    algorithms: list[Literal[Symmetric, Asymmetric]]
    """What they may be signed with: HS256, RS256, PS256 or ES256, the same with 384 and 512, and
    EdDSA. HS cannot be together with others."""
    keys: KeySettings
    """What they are signed with."""
    claims: ClaimSettings = field(default_factory=ClaimSettings)
    """Whose they are."""
    required: list[Literal["nbf", "iat", "jti"]] = field(default_factory=lambda: ["nbf"])
    """Claims that have to be there besides ``iss``, ``aud`` and ``exp``; what is there of them is
    checked in any case."""
    types: list[Literal["JWT", "at+jwt"]] = field(default_factory=lambda: ["JWT", "at+jwt"])
    """What their ``typ`` may be; one without counts as JWT."""
    leeway: Annotated[float, Meta(ge=0, le=60)] = 30.0
    """Seconds that the issuer's clock may be before or behind this one."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where no token could be right, or keys be taken for secrets."""
        if not (self.audiences and self.algorithms and self.types):
            raise ValueError("audiences, algorithms and types each need one entry at least")
        symmetric = {algorithm.startswith("HS") for algorithm in self.algorithms}
        if len(symmetric) > 1:
            raise ValueError("algorithms: HS cannot be together with others")
        published = self.keys.discovery or self.keys.jwks_url
        if True in symmetric and (published or self.keys.pem):
            raise ValueError("keys: for HS they are in secret or in jwks_file")
        if False in symmetric and self.keys.secret:
            raise ValueError("keys.secret: it is for HS only")
        if self.keys.discovery:
            check_web_url(self.issuer)
            check_fetched(self.issuer, allow_http=self.keys.allow_http)


class MtlsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What clients prove by a certificate that connect to one of the edge's names."""

    ca: FilePath
    """PEM file: the authorities, and no others, that their certificates may come from."""
    user_from: Literal["subject-cn", "subject-dn", "san-uri", "san-email", "san-dns"] = "subject-cn"
    """What of a certificate is the user's name; it must have exactly one of it."""
    users: dict[Name, Name] | None = None
    """Users by what the certificate says; others stay outside. ``None``: what it says."""


RESERVED: Final = ("token", "jupyterhub", "mtls")
"""Names of authenticators that are no issuer's."""


class AuthenticationSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The authenticators. Whom none of them knows stays outside."""

    chain: list[AuthenticatorName] = []
    """Their names in the order in which they are asked; empty: all, in the order they have here."""
    tokens: TokenSettings | None = None
    """Static tokens."""
    path_tokens: PathTokenSettings | None = None
    """Path tokens; without this section there are none."""
    jwt: dict[AuthenticatorName, JwtSettings] = {}
    """JWTs: their issuers, each an authenticator by the name that it has here."""
    jupyterhub: JupyterHubSettings | None = None
    """A JupyterHub's tokens."""
    mtls: dict[ServerName, MtlsSettings] = {}
    """Names of the edge under which clients show a certificate; their authenticator is called
    ``mtls``, and is not in the chain: a connection's certificate counts before any token."""
    aliases: dict[PrincipalName, PrincipalName] = {}
    """Who is another authenticator's user in truth: ``corp:alice: token:alice``. Without this, two
    authenticators never speak of the same person."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a chain that is not made of the authenticators that are set."""
        self._check_issuers()
        known = self.authenticators
        if not known:
            raise ValueError("no authenticator is set: nobody could come in")
        for name in self.chain:
            if name not in self.names:
                there = ", ".join(self.names)
                raise ValueError(f"chain: {name} is not set here; there is {there}")
        if len(set(self.chain)) < len(self.chain):
            raise ValueError("chain: a name appears twice")
        for principal in self.aliases:
            if Principal.parse(principal).authenticator not in known:
                raise ValueError(f"aliases: no authenticator that is set here knows {principal}")
        if self.path_tokens is not None and self.tokens is None:
            raise ValueError("path_tokens: tokens is not set, in whose file they are")

    def _check_issuers(self) -> None:
        for name in self.jwt:
            if name in RESERVED:
                raise ValueError(f"jwt: {name} is the name of another authenticator")
        issuers = [each.issuer for each in self.jwt.values()]
        if len(set(issuers)) < len(issuers):
            raise ValueError("jwt: an issuer appears twice")

    @property
    def names(self) -> list[str]:
        """The names of all authenticators that are set and can be in the chain, in their order."""
        tokens = ["token"] if self.tokens is not None else []
        hub = ["jupyterhub"] if self.jupyterhub is not None else []
        return [*tokens, *self.jwt, *hub]

    @property
    def authenticators(self) -> list[str]:
        """The names of all that are set."""
        return [*self.names, *(["mtls"] if self.mtls else [])]

    @property
    def principals(self) -> list[str]:
        """The authenticators whose principals come in, those that aliases name among them."""
        named = [Principal.parse(principal).authenticator for principal in self.aliases.values()]
        return list(dict.fromkeys([*self.authenticators, *named]))
