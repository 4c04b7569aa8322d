"""Settings of authentication: one frozen struct per authenticator."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from relay.config.jupyterhub import JupyterHubSettings
from relay.config.values import (
    KIB,
    SECONDS_PER_DAY,
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
    check_https,
    check_web_url,
)
from relay.model import Principal

ServerName = Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")]


class TokenSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Static tokens, which ``relay token`` makes; the authenticator is called ``token``."""

    file: SecretFile
    """JSON file: the hashes of the tokens and their users; read again when it changes."""
    look_interval: Annotated[float, Meta(gt=0, le=60)] = 0.5
    """Seconds between two checks for a changed file."""


class PathTokenSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens in URLs' paths, ``/t/<token>/<cluster>/…``: for WebSockets of clients without headers.

    They are in the file of the static tokens, but not accepted in place of one.
    """

    max_lifetime: Seconds = 43_200.0
    """Seconds; a path token made for a longer time is refused."""


class PemSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A public key in a file."""

    file: FilePath
    """PEM file: one public key, RSA or on one of the curves P-256, P-384, P-521 and Ed25519."""
    kid: Name | None = None
    """The key's id in tokens; by default the key is for tokens whose ``kid`` no other key has."""


class KeySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys that an issuer signs its tokens with; set one of the first five."""

    discovery: bool = False
    """Whether to ask the issuer for the URL of its keys (OpenID Connect Discovery)."""
    jwks_url: WebUrl | None = None
    """The URL of the issuer's JWK Set."""
    jwks_file: JwksFile | None = None
    """JSON file: a JWK Set; for HMAC with the secrets in it."""
    pem: list[PemSettings] = []
    """Public keys in separate files."""
    secret: SecretFile | None = None
    """File: an HMAC secret, at least as long as the hash. A final line feed is not part of it."""
    ca: FilePath | None = None
    """PEM file: the certificate authorities for the issuer's URL; by default the system's."""
    refresh: Seconds = 600.0
    """Seconds after which published keys are fetched again, or sooner if the issuer says so; a key
    that the issuer withdraws is accepted no longer than this."""
    cool_down: Seconds = 10.0
    """Seconds between two fetches, at least, whatever keys tokens name."""
    keep: Annotated[float, Meta(ge=3600, le=SECONDS_PER_DAY)] = 7200.0
    """Seconds that fetched keys are used while the issuer does not respond."""
    timeout: Seconds = 5.0
    """Seconds for a fetch, including discovery."""
    document_bytes: Size = 256 * KIB
    """Bytes of each fetched document; beyond, the fetch has failed."""
    allow_http: bool = False
    """Whether URLs may be ``http`` on the loopback interface. For tests."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless there is exactly one source, over HTTPS."""
        sources = (self.discovery, self.jwks_url, self.jwks_file, self.pem, self.secret)
        if sum(map(bool, sources)) != 1:
            raise ValueError("set exactly one of discovery, jwks_url, jwks_file, pem and secret")
        if self.jwks_url is not None:
            check_https(self.jwks_url, allow_http=self.allow_http)
        if len({each.kid for each in self.pem}) < len(self.pem):
            raise ValueError("pem: two keys need different kids")


Symmetric = Literal["HS256", "HS384", "HS512"]
Asymmetric = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]


class ClaimSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The claims to read; a dot leads into an object, as in ``realm_access.roles``."""

    user: ClaimPath = "sub"
    """The user's name; choose a claim that the issuer never reassigns to another user."""
    groups: ClaimPath | None = None
    """The user's groups: a list of names, or one name; by default there are none."""
    scopes: ClaimPath | None = None
    """The token's scopes: a list, or a text with spaces. Where this is set, a token without scopes
    is refused; by default tokens are not limited."""


class JwtSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JWTs of one issuer."""

    issuer: Name
    """The value of ``iss``, exactly; for ``keys.discovery`` a URL."""
    audiences: list[Name]
    """A token's ``aud`` must contain one of these, exactly."""
    algorithms: list[Literal[Symmetric, Asymmetric]]
    """Accepted algorithms: HS256, RS256, PS256 or ES256, the same with 384 and 512, and EdDSA. HS
    cannot be combined with others."""
    keys: KeySettings
    """The keys that the issuer signs with."""
    claims: ClaimSettings = field(default_factory=ClaimSettings)
    """The claims with user, groups and scopes."""
    required: list[Literal["nbf", "iat", "jti"]] = field(default_factory=lambda: ["nbf"])
    """Claims that a token must have besides ``iss``, ``aud`` and ``exp``; those that are present
    are checked in any case."""
    types: list[Literal["JWT", "at+jwt"]] = field(default_factory=lambda: ["JWT", "at+jwt"])
    """Accepted values of ``typ``; a token without ``typ`` counts as JWT."""
    leeway: Annotated[float, Meta(ge=0, le=60)] = 30.0
    """Seconds by which the issuer's clock may differ from this one."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where no token could be valid, or keys could be used as secrets."""
        if not (self.audiences and self.algorithms and self.types):
            raise ValueError("audiences, algorithms and types each need at least one entry")
        symmetric = {algorithm.startswith("HS") for algorithm in self.algorithms}
        if len(symmetric) > 1:
            raise ValueError("algorithms: HS cannot be combined with others")
        published = self.keys.discovery or self.keys.jwks_url
        if True in symmetric and (published or self.keys.pem):
            raise ValueError("keys: for HS they must be in secret or in jwks_file")
        if False in symmetric and self.keys.secret:
            raise ValueError("keys.secret: it can be used with HS only")
        if self.keys.discovery:
            check_web_url(self.issuer)
            check_https(self.issuer, allow_http=self.keys.allow_http)


class MtlsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Client certificates for one of the edge's host names."""

    ca: FilePath
    """PEM file: the only certificate authorities that are accepted for clients."""
    user_from: Literal["subject-cn", "subject-dn", "san-uri", "san-email", "san-dns"] = "subject-cn"
    """The part of a certificate that is the user's name; there must be exactly one of it."""
    users: dict[Name, Name] | None = None
    """Users by that name; others are refused. ``None``: the name itself is the user."""


RESERVED: Final = ("token", "jupyterhub", "mtls")
"""Names of authenticators that an issuer of JWTs cannot have."""


class AuthenticationSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The authenticators; a client that none of them knows is refused."""

    chain: list[AuthenticatorName] = []
    """Names in the order in which they are asked; empty: all, in the order of these settings."""
    tokens: TokenSettings | None = None
    """Static tokens."""
    path_tokens: PathTokenSettings | None = None
    """Path tokens; without this section there are none."""
    jwt: dict[AuthenticatorName, JwtSettings] = {}
    """Issuers of JWTs; each is an authenticator under the name that it has here."""
    jupyterhub: JupyterHubSettings | None = None
    """JupyterHub's tokens."""
    mtls: dict[ServerName, MtlsSettings] = {}
    """Host names under which clients must present a certificate. The authenticator is called
    ``mtls`` and is not in the chain: the connection's certificate counts before any token."""
    aliases: dict[PrincipalName, PrincipalName] = {}
    """Principals that share another principal's identity: ``corp:alice: token:alice``. Without an
    alias two authenticators never name the same user."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a chain, alias or section that names a missing authenticator."""
        self._check_issuers()
        known = self.authenticators
        if not known:
            raise ValueError("no authenticator is set, so nobody could be authenticated")
        for name in self.chain:
            if name not in self.chainable:
                there = ", ".join(self.chainable)
                raise ValueError(f"chain: {name} is not set here; known are {there}")
        if len(set(self.chain)) < len(self.chain):
            raise ValueError("chain: a name appears twice")
        for principal in self.aliases:
            if Principal.parse(principal).authenticator not in known:
                raise ValueError(f"aliases: the authenticator of {principal} is not set here")
        if self.path_tokens is not None and self.tokens is None:
            raise ValueError("path_tokens: they need tokens, whose file they are in")

    def _check_issuers(self) -> None:
        for name in self.jwt:
            if name in RESERVED:
                raise ValueError(f"jwt: {name} is the name of another authenticator")
        issuers = [each.issuer for each in self.jwt.values()]
        if len(set(issuers)) < len(issuers):
            raise ValueError("jwt: an issuer appears twice")

    @property
    def chainable(self) -> list[str]:
        """Names of the configured authenticators that can be in the chain, in their order."""
        tokens = ["token"] if self.tokens is not None else []
        hub = ["jupyterhub"] if self.jupyterhub is not None else []
        return [*tokens, *self.jwt, *hub]

    @property
    def authenticators(self) -> list[str]:
        """Names of all configured authenticators."""
        return [*self.chainable, *(["mtls"] if self.mtls else [])]

    @property
    def of_principals(self) -> list[str]:
        """Names of all authenticators of principals, including those that aliases name."""
        named = [Principal.parse(principal).authenticator for principal in self.aliases.values()]
        return list(dict.fromkeys([*self.authenticators, *named]))
