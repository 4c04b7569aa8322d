"""The settings of ``relay edge``: one frozen struct per subject, the unit in the docstring."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from relay.auth.policy import Action, Policy, Rule
from relay.config.door import (
    ConnectionSettings,
    LoginSettings,
    MtlsSettings,
    ProxySettings,
    QuotaSettings,
    ServerName,
)
from relay.config.jupyterhub import BaseUrl, JupyterHubSettings
from relay.config.values import (
    A_DAY,
    KIB,
    MIB,
    AgentUrl,
    AuthenticatorName,
    ClaimPath,
    ClusterName,
    Count,
    FilePath,
    KernelspecName,
    ListenSettings,
    LogSettings,
    MetricsSettings,
    Name,
    Origin,
    PrincipalName,
    Seconds,
    SecondsOrZero,
    Size,
    WebUrl,
    check_fetched,
    check_two_ports,
    check_web_url,
)
from relay.model import Principal


class TlsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who the edge is towards its clients."""

    certificate: FilePath
    """PEM file: the certificate, then what else its chain needs."""
    key: FilePath
    """PEM file: the certificate's private key, without a passphrase."""


class UpstreamTls(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the edge trusts a cluster's agents, and proves itself to them."""

    ca: FilePath
    """PEM file: the authorities, and no others, that an agent's certificate may come from."""
    certificate: FilePath | None = None
    """PEM file: the edge's certificate for agents that ask for one; none is shown by default."""
    key: FilePath | None = None
    """PEM file: the private key of ``certificate``."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for half a pair."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")


class ClusterSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cluster, as the edge sees it."""

    agents: list[AgentUrl]
    """Its agents, each as ``http://host:port`` or ``https://host:port``; any of them will do."""
    title: Annotated[str, Meta(max_length=100)] = ""
    """What people read; empty: the cluster's name."""
    tls: UpstreamTls | None = None
    """For ``https`` agents; without it the system's authorities are trusted."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where nobody could be reached, or not as it seems."""
        if not self.agents:
            raise ValueError("agents: a cluster needs at least one")
        if self.tls is not None and any(url.startswith("http:") for url in self.agents):
            raise ValueError("tls is set, but an agent's URL is http")


class EdgeLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client may send; whatever is beyond is refused and costs nothing more."""

    request_line_bytes: Size = 8 * KIB
    """Bytes of a request's target, never more than 8 KiB; beyond: 400."""
    header_bytes: Size = 8 * KIB
    """Bytes of one header's value; beyond: 400."""
    headers: Count = 100
    """Headers of one request; beyond: 400."""
    head_bytes: Size = 32 * KIB
    """Bytes of a request's line and headers together; beyond: 400."""
    body_bytes: Size = MIB
    """Bytes of a request's body; beyond: 413."""
    message_bytes: Size = 64 * MIB
    """Bytes of one WebSocket message from a client; beyond: close code 1009."""
    message_frames: Count = 4096
    """WebSocket frames that one message may come in; beyond: close code 1009."""
    control_frames: Count = 200
    """Pings and other control frames that a client may send within a second; beyond: close code
    1008."""
    unacknowledged_bytes: Size = 8 * MIB
    """Bytes of a client's messages kept until the kernel's holder has them, to be sent again if
    the agent dies; at this many the edge stops reading from that client until some are through."""


class WebSocketSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a dead peer is told from a quiet one."""

    ping_interval: Seconds = 25.0
    """Seconds between WebSocket pings to a client; below most proxies' idle limits."""
    pong_timeout: Seconds = 90.0
    """Seconds that a ping may stay unanswered before the connection counts as dead."""
    proof_interval: Seconds = 0.2
    """Seconds between pings that ask a client how far it has come, while it is sent output."""


class UpstreamSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the edge waits for agents."""

    connect_timeout: Seconds = 2.0
    """Seconds for a connection to an agent, TLS included."""
    request_timeout: Seconds = 30.0
    """Seconds for an agent's whole answer to a request that starts no kernel."""
    start_timeout: Seconds = 150.0
    """Seconds for an agent's answer to a request that starts or restarts a kernel."""
    hold: SecondsOrZero = 2.0
    """Seconds, from an agent's first failure, that a REST request waits for one to come back."""
    websocket_hold: SecondsOrZero = 10.0
    """Seconds, from an agent's first failure, that a WebSocket upgrade waits for one."""
    reattach: SecondsOrZero = 60.0
    """Seconds that a client's open WebSocket outlives its agent before it is closed (1012), and
    that a kernel's start waits when its agent breaks off in the middle."""
    link_ping_interval: Seconds = 15.0
    """Seconds between signs of life that an agent gives on each link; without one it is gone."""


_KERNELSPEC_CHARACTERS: Final = 1400
"""A ticket bears them for up to three actions at once."""


class TokenSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Static tokens, which ``relay token`` makes; their authenticator is called ``token``."""

    file: FilePath
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
    jwks_file: FilePath | None = None
    """JSON file: a JWK Set; for HMAC with the secrets in it."""
    pem: list[PemSettings] = []
    """Public keys in files of their own."""
    secret: FilePath | None = None
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


class RuleSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Grants some actions to some people. Everything is compared exactly; there are no patterns."""

    authenticator: AuthenticatorName
    """The authenticator whose names ``user``, ``group`` and ``scope`` are."""
    user: Name | None = None
    """The one user it is for; by default everybody whom the authenticator knows."""
    group: Name | None = None
    """Only for members of this group."""
    scope: Name | None = None
    """For credentials with this scope. Without one, for credentials without any scopes only."""
    clusters: list[ClusterName] | None = None
    """The clusters it is for; by default all."""
    kernelspecs: list[KernelspecName] | None = None
    """The kernelspecs it is for; by default all."""
    actions: list[Action]
    """Any of: list, start, use, view, interrupt, stop, admin. None implies another."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where it makes no rule."""
        self.rule()

    def rule(self) -> Rule:
        """As the policy knows it. Raises ``ValueError``."""
        return Rule(
            authenticator=self.authenticator,
            user=self.user,
            group=self.group,
            scope=self.scope,
            clusters=None if self.clusters is None else frozenset(self.clusters),
            kernelspecs=None if self.kernelspecs is None else frozenset(self.kernelspecs),
            actions=frozenset(self.actions),
        )


class PolicySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What those who come in may do: nothing that no rule grants."""

    rules: list[RuleSettings] = []
    """They add up; their order has no meaning. A ticket bears the names of kernelspecs: those of
    all rules together must not be over 1,400 characters."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for more names than go into a ticket."""
        names = {name for rule in self.rules for name in rule.kernelspecs or ()}
        if sum(len(name) + len('"",') for name in names) > _KERNELSPEC_CHARACTERS:
            raise ValueError(
                "rules: the names of kernelspecs in all rules together are over "
                f"{_KERNELSPEC_CHARACTERS} characters, more than a ticket bears"
            )

    def policy(self) -> Policy:
        """The policy that they make."""
        return Policy(each.rule() for each in self.rules)


class AuditSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The audit log: one line for every decision that matters, each bound to the one before."""

    file: FilePath | None = None
    """The file, which ``relay audit verify`` checks; by default there is none. Of ``relay up`` it
    is ``audit.log`` in the state folder by default."""
    required: bool = False
    """Whether what would leave a line is refused (503) while none can be written."""
    waiting: Count = 1000
    """Lines that wait in memory while the file cannot be written; beyond that they are lost, and
    the log says how many."""


class EdgeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``relay edge``."""

    https: ListenSettings = field(default_factory=lambda: ListenSettings(port=8443))
    """REST, and kernel channels for clients that know one URL."""
    wss: ListenSettings = field(default_factory=lambda: ListenSettings(port=8444))
    """Kernel channels only."""
    base_url: BaseUrl = ""
    """The path in front of all others, as ``/services/relay``, if a proxy sends us requests with
    one; where ``authentication.jupyterhub`` is set, by default ``$JUPYTERHUB_SERVICE_PREFIX``."""
    tls: TlsSettings
    """The certificate for both ports."""
    workers: Count = 2
    """Processes that share the two ports."""
    clusters: dict[ClusterName, ClusterSettings]
    """The clusters by name; the name is the first segment of their URLs."""
    authentication: AuthenticationSettings
    """Who may come in."""
    policy: PolicySettings = field(default_factory=PolicySettings)
    """What they may do."""
    ticket_key: FilePath
    """PEM file: the Ed25519 private key that signs the tickets which agents ask for."""
    ticket_lifetime: Annotated[float, Meta(ge=1, le=120)] = 30.0
    """Seconds a ticket is good for; agents refuse more than 120."""
    origins: list[Origin] = []
    """Origins, besides the relay's own, whose pages may open WebSockets, change things and read
    answers: ``https://lab.example``. Compared exactly; a page still needs a token."""
    limits: EdgeLimits = field(default_factory=EdgeLimits)
    """What one client may send."""
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    """How many connections there may be, and how long they may take."""
    quotas: QuotaSettings = field(default_factory=QuotaSettings)
    """What one user, and one cluster, may have."""
    logins: LoginSettings = field(default_factory=LoginSettings)
    """How often an address may be wrong."""
    proxies: ProxySettings = field(default_factory=ProxySettings)
    """Who speaks for others."""
    websocket: WebSocketSettings = field(default_factory=WebSocketSettings)
    """Pings."""
    upstream: UpstreamSettings = field(default_factory=UpstreamSettings)
    """Patience with agents."""
    drain: SecondsOrZero = 5.0
    """Seconds between SIGTERM and the end of whatever is not finished by then."""
    log: LogSettings = field(default_factory=LogSettings)
    """The log of the edge and its workers."""
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    """Where its metrics are read."""
    audit: AuditSettings = field(default_factory=AuditSettings)
    """The audit log."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where two ports are one, or a rule or a demand makes no sense."""
        check_two_ports(self.https, self.wss)
        known = self.authentication.principals
        for number, rule in enumerate(self.policy.rules):
            if rule.authenticator not in known:
                raise ValueError(
                    f"policy.rules.{number}: no authenticator is called {rule.authenticator}; "
                    f"there is {', '.join(known)}"
                )
        if self.audit.required and self.audit.file is None:
            raise ValueError("audit.required: there is no audit.file")
