"""Every metric there is: its name, its labels, what it means.

Names and units are as Prometheus wants them (https://prometheus.io/docs/practices/naming/). No
label has a value that clients choose: clusters are those configured, kinds those of the route
table, settings those that there are. docs/operations.md has the table; a test compares them.

An edge's workers count in files that they share with their parent, which serves them together
(prometheus_client's multiprocess mode). The parent and the agents count in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from relay import __version__

_SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
_KINDS: Final = ("counter", "gauge_livesum", "gauge_livemin")
"""Beginnings of the names of a worker's files, after the types of metric that an edge has."""
_FILE_BYTES: Final = 1024 * 1024
"""Of one file; some 7,000 combinations of labels."""
_KEPT: Final = "counter_ended.db"
"""What workers counted that have ended; named as if that were a pid."""


class EdgeMetrics:
    """What an edge worker counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"relay_edge_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            # Of the workers that live.
            return Gauge(
                f"relay_edge_{name}", text, labels, registry=registry, multiprocess_mode="livesum"
            )

        def oldest(name: str, text: str, *labels: str) -> Gauge:
            # Of the workers that live, the one that is behind.
            return Gauge(
                f"relay_edge_{name}", text, labels, registry=registry, multiprocess_mode="livemin"
            )

        self._requests = counter(
            "requests",
            "Requests by what they asked for and the class of the answer's status; a WebSocket's"
            " when it has ended. Both labels are empty where a request did not come that far.",
            "cluster",
            "kind",
            "status",
        )
        self.refused_logins = counter("refused_logins", "Requests without a valid credential.")
        self.websockets = gauge("websockets", "Clients' WebSockets that are open.", "cluster")
        self._bytes = counter(
            "websocket_bytes",
            "Bytes on clients' WebSockets: frames out, messages in.",
            "cluster",
            "direction",
        )
        self._pings = counter("pings", "Pings that were sent to clients.", "cluster")
        self._proofs = counter("proofs", "Pongs that proved how far a client has come.", "cluster")
        self.links_lost = counter(
            "links_lost", "Links to agents that broke under an open WebSocket.", "cluster"
        )
        self.agent_failures = counter(
            "agent_failures", "Tries to reach an agent that failed.", "cluster"
        )
        self.held = gauge("held_requests", "Requests that wait for an agent now.", "cluster")
        self.broken_answers = counter(
            "broken_answers", "Answers that an agent began and did not end.", "cluster"
        )
        self.sent_away = counter(
            "sent_away",
            "Clients whose WebSocket or stream was ended, since they may not have it any more.",
            "reason",
        )
        self.refused_token_files = counter(
            "refused_token_files",
            "Times that the changed file of tokens could not be used, and those before were kept.",
        )
        self.key_fetches = counter(
            "key_fetches", "Tries to fetch the keys of an issuer of JWTs.", "authenticator"
        )
        self.key_fetch_failures = counter(
            "key_fetch_failures", "Those of them that failed.", "authenticator"
        )
        self.keys_fetched = oldest(
            "keys_fetched_timestamp_seconds",
            "When an issuer's keys were fetched last, in Unix time, by the worker with the oldest;"
            " 0: never.",
            "authenticator",
        )
        self.hub_requests = counter(
            "hub_requests",
            "What JupyterHub was asked (user: whose a token is; activity: to note one), and what"
            " came of it: known, refused (no access to us), unknown, failed.",
            "what",
            "outcome",
        )
        self._limit_hits = Counter("relay_limit_hits", _LIMIT_HITS, ["setting"], registry=registry)

    @classmethod
    def local(cls) -> Self:
        """In this process's memory, seen by nobody else."""
        values.ValueClass = values.MutexValue
        return cls(CollectorRegistry())

    @classmethod
    def shared(cls, folder: Path) -> Self:
        """In files that the parent reads. Raises ``OSError`` where they cannot be made."""
        for kind in _KINDS:
            _allocate(folder / f"{kind}_{os.getpid()}.db")
        os.environ[_SHARED] = str(folder)
        values.ValueClass = values.MultiProcessValue()
        return cls(CollectorRegistry())

    def answered(self, cluster: str, kind: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(cluster, kind, f"{status // 100}xx").inc()

    def limit_hit(self, setting: str) -> None:
        """Count a limit that was hit."""
        self._limit_hits.labels(setting).inc()

    def traffic(self, cluster: str) -> Traffic:
        """The counts of one WebSocket's cluster, ready to be raised."""
        return Traffic(
            out=self._bytes.labels(cluster, "out"),
            back=self._bytes.labels(cluster, "in"),
            pings=self._pings.labels(cluster),
            proofs=self._proofs.labels(cluster),
        )


class Traffic:
    """What WebSockets of one cluster carry; each is called once per record, not per message."""

    def __init__(self, *, out: Counter, back: Counter, pings: Counter, proofs: Counter) -> None:
        self.sent = out.inc
        """With the number of bytes."""
        self.received = back.inc
        """With the number of bytes."""
        self.pinged = pings.inc
        self.proved = proofs.inc


class SharedFolder:
    """Where an edge's workers count, as their parent sees it."""

    def __init__(self, place: Path) -> None:
        """Make it in a folder of the parent's own. Raises ``OSError``."""
        self.path = place / "metrics"
        self.path.mkdir(0o700)
        _allocate(self.path / _KEPT)

    def retire(self, pid: int) -> None:
        """A worker has ended: its gauges are forgotten, its counts are kept, in one file for all.

        Else a worker that dies again and again would leave a file each time.
        """
        mark_process_dead(pid, str(self.path))
        ended = self.path / f"counter_{pid}.db"
        try:
            counts = list(MmapedDict.read_all_values_from_file(str(ended)))
        except OSError:
            # It never came to count.
            return
        with contextlib.closing(MmapedDict(str(self.path / _KEPT))) as kept:
            for key, value, _, _ in counts:
                kept.write_value(key, kept.read_value(key)[0] + value, 0.0)
        ended.unlink()


def _allocate(path: Path) -> None:
    """Make a file that has all its blocks. Raises ``OSError``.

    A write into a mapped file for which a full disk has none left is no error, but the end of the
    process (SIGBUS, ``mmap(2)``).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _FILE_BYTES)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


class AuditFigures(NamedTuple):
    """What an edge's parent tells of its audit log."""

    written: int = 0
    """Lines, since the start."""
    waiting: int = 0
    """Lines that are to be written as soon as that can be done."""
    lost: int = 0
    """Lines that found no room to wait, since the start."""


class ParentFigures(NamedTuple):
    """What an edge's parent tells of itself. Counts since its start."""

    workers: int = 0
    worker_ends: int = 0
    refused_configurations: int = 0
    audit: AuditFigures = AuditFigures()


class ParentMetrics(Collector):
    """What an edge's parent tells of itself."""

    def __init__(self, figures: Callable[[], ParentFigures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """One sample each."""
        figures = self._figures()
        yield _build()
        yield GaugeMetricFamily("relay_edge_workers", "Workers that run.", figures.workers)
        yield CounterMetricFamily(
            "relay_edge_worker_ends", "Workers that ended.", figures.worker_ends
        )
        yield CounterMetricFamily(
            "relay_edge_refused_configurations",
            "Times that the changed configuration could not be used, and the one before was kept.",
            figures.refused_configurations,
        )
        audit = figures.audit
        yield CounterMetricFamily(
            "relay_edge_audit_lines", "Lines that were written to the audit log.", audit.written
        )
        yield GaugeMetricFamily(
            "relay_edge_audit_waiting_lines",
            "Lines that wait until the audit log can be written.",
            audit.waiting,
        )
        yield CounterMetricFamily(
            "relay_edge_audit_lost_lines", "Lines of the audit log that are lost.", audit.lost
        )


def edge_registry(folder: SharedFolder, parent: ParentMetrics) -> CollectorRegistry:
    """What an edge's parent serves."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder.path))
    registry.register(parent)
    return registry


class AgentFigures(msgspec.Struct, kw_only=True):
    """What an agent tells: of its kernels together, and of its own work. Counts since its start."""

    kernels: int = 0
    sessions: int = 0
    connections: int = 0
    journal_bytes: int = 0
    largest_journal: int = 0
    """Bytes of the largest of them."""
    journals_failing: int = 0
    starts: int = 0
    start_failures: int = 0
    holder_deaths: int = 0
    messages: int = 0
    unsaved: int = 0
    gaps: int = 0
    gap_messages: int = 0
    limit_hits: Mapping[str, int] = {}


_LIMIT_HITS: Final = "How often a limit was hit: something was refused, cut, dropped or ended."
_AGENT_GAUGES: Final = (
    ("kernels", "kernels", "Kernels that run."),
    ("sessions", "sessions", "Clients that kernels remember, connected or not."),
    ("connections", "connections", "Clients that are attached to kernels."),
    ("journal_bytes", "journal_bytes", "Bytes of all kernels' journals on disk."),
    ("largest_journal_bytes", "largest_journal", "Bytes of the largest kernel's journal on disk."),
    ("failing_journals", "journals_failing", "Kernels whose journal cannot be written just now."),
)
_AGENT_COUNTERS: Final = (
    ("starts", "starts", "Kernels that were asked for."),
    ("start_failures", "start_failures", "Starts that failed."),
    ("holder_deaths", "holder_deaths", "Holders that ended without a word."),
    ("messages", "messages", "Messages that kernels said, on all channels."),
    ("unsaved_messages", "unsaved", "Messages that could not be written to a journal."),
    ("gaps", "gaps", "Times that a reader was told of missing messages."),
    ("gap_messages", "gap_messages", "Messages that these readers missed at the most."),
)


class AgentMetrics(Collector):
    """What an agent tells; ``read`` gives the figures as they are."""

    def __init__(self, read: Callable[[], AgentFigures]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """One sample each; one per setting of the limits that were hit."""
        figures = self._read()
        yield _build()
        for name, field, text in _AGENT_GAUGES:
            yield GaugeMetricFamily(f"relay_agent_{name}", text, getattr(figures, field))
        for name, field, text in _AGENT_COUNTERS:
            yield CounterMetricFamily(f"relay_agent_{name}", text, getattr(figures, field))
        hits = CounterMetricFamily("relay_limit_hits", _LIMIT_HITS, labels=["setting"])
        for setting, count in sorted(figures.limit_hits.items()):
            hits.add_metric([setting], count)
        yield hits


def agent_registry(metrics: AgentMetrics) -> CollectorRegistry:
    """What an agent serves; of its process too."""
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    return registry


def page(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """All metrics as text in a form that ``accept``, the header, allows; and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _build() -> Metric:
    family = GaugeMetricFamily("relay_build_info", "The relay's version.", labels=["version"])
    family.add_metric([__version__], 1)
    return family
