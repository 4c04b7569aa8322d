"""Every metric: its name, its labels and its meaning.

Names and units follow Prometheus (https://prometheus.io/docs/practices/naming/). No label has a
value that clients choose: clusters are the configured ones, kinds those of the route table,
settings those of the configuration. docs/operations.md has the table; a test compares the two.

An edge's workers count in files that they share with their parent, which serves their sums
(prometheus_client's multiprocess mode). The parent and the agents count in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

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
"""First parts of the names of a worker's files, one for each type of metric that an edge has."""
_FILE_BYTES: Final = 1024 * 1024
"""Bytes of one file; enough for some 7,000 combinations of labels."""
_ENDED_WORKERS: Final = "counter_ended.db"
"""The file with the counts of workers that have ended; "ended" stands in the place of a pid."""


class _EdgeRegistry(NamedTuple):
    """Registers metrics of an edge worker; the parent serves one value for all workers."""

    registry: CollectorRegistry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Make a counter, whose values are summed."""
        return Counter(f"relay_edge_{name}", text, labels, registry=self.registry)

    def total(self, name: str, text: str, *labels: str) -> Gauge:
        """Make a gauge, whose values in running workers are summed."""
        return self._gauge(name, text, labels, "livesum")

    def lowest(self, name: str, text: str, *labels: str) -> Gauge:
        """Make a gauge, of whose values in running workers the lowest counts."""
        return self._gauge(name, text, labels, "livemin")

    def _gauge(
        self, name: str, text: str, labels: tuple[str, ...], mode: Literal["livesum", "livemin"]
    ) -> Gauge:
        return Gauge(
            f"relay_edge_{name}", text, labels, registry=self.registry, multiprocess_mode=mode
        )


class EdgeMetrics:
    """The metrics of an edge worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        edge = _EdgeRegistry(registry)
        self._requests = edge.counter(
            "requests",
            "Requests by route and class of the response's status; a WebSocket is counted when it"
            " has ended. Labels are empty where the request failed before its route was known.",
            "cluster",
            "kind",
            "status",
        )
        self.refused_logins = edge.counter("refused_logins", "Requests without a valid credential.")
        self.websockets = edge.total("websockets", "Open WebSockets of clients.", "cluster")
        self._traffic = _TrafficCounters(edge)
        self.links_lost = edge.counter(
            "links_lost", "Links to agents that were lost under an open WebSocket.", "cluster"
        )
        self.agent_failures = edge.counter(
            "agent_failures", "Failed attempts to reach an agent.", "cluster"
        )
        self.held_requests = edge.total(
            "held_requests", "Requests that wait for an agent to come back.", "cluster"
        )
        self.broken_answers = edge.counter(
            "broken_answers", "Responses that an agent began and did not finish.", "cluster"
        )
        self.sent_away = edge.counter(
            "sent_away",
            "WebSockets and streams that were ended because access was revoked or has expired.",
            "reason",
        )
        self.refused_token_files = edge.counter(
            "refused_token_files",
            "Times that the changed token file was invalid and the previous tokens were kept.",
        )
        self.key_fetches = edge.counter(
            "key_fetches", "Attempts to fetch the keys of an issuer of JWTs.", "authenticator"
        )
        self.key_fetch_failures = edge.counter(
            "key_fetch_failures", "Failed attempts to fetch an issuer's keys.", "authenticator"
        )
        self.keys_fetched = edge.lowest(
            "keys_fetched_timestamp_seconds",
            "Unix time of the last successful fetch of an issuer's keys, of the worker whose fetch"
            " is oldest; 0: never.",
            "authenticator",
        )
        self.hub_requests = edge.counter(
            "hub_requests",
            "Requests to JupyterHub (user: check a token, activity: report activity) by outcome:"
            " known, refused (the relay has no access), unknown, failed.",
            "what",
            "outcome",
        )
        self._limit_hits = Counter("relay_limit_hits", _LIMIT_HITS, ["setting"], registry=registry)

    @classmethod
    def local(cls) -> Self:
        """Make metrics in this process's memory, which no other process reads."""
        values.ValueClass = values.MutexValue
        return cls(CollectorRegistry())

    @classmethod
    def shared(cls, folder: Path) -> Self:
        """Make metrics in files that the parent reads. Raises ``OSError``."""
        for kind in _KINDS:
            _allocate(folder / f"{kind}_{os.getpid()}.db")
        os.environ[_SHARED] = str(folder)
        values.ValueClass = values.MultiProcessValue()
        return cls(CollectorRegistry())

    def count_request(self, cluster: str, kind: str, status: int) -> None:
        """Count a request by its route and the class of its response's status."""
        self._requests.labels(cluster, kind, f"{status // 100}xx").inc()

    def count_limit_hit(self, setting: str) -> None:
        """Count that a limit was reached."""
        self._limit_hits.labels(setting).inc()

    def traffic(self, cluster: str) -> Traffic:
        """Return the counters of one cluster's WebSockets, labels applied."""
        return self._traffic.of(cluster)


class Traffic:
    """Counters of one cluster's WebSockets; each is called once per record, not per message."""

    def __init__(self, *, out: Counter, back: Counter, pings: Counter, proofs: Counter) -> None:
        self.sent = out.inc
        """Takes a number of bytes."""
        self.received = back.inc
        """Takes a number of bytes."""
        self.pinged = pings.inc
        self.proved = proofs.inc


class _TrafficCounters:
    """Counters of the WebSockets of all clusters."""

    def __init__(self, edge: _EdgeRegistry) -> None:
        self._bytes = edge.counter(
            "websocket_bytes",
            "Bytes on clients' WebSockets; out: frames to clients, in: messages of clients.",
            "cluster",
            "direction",
        )
        self._pings = edge.counter("pings", "WebSocket pings sent to clients.", "cluster")
        self._proofs = edge.counter(
            "proofs", "Pongs that confirmed what a client has received.", "cluster"
        )

    def of(self, cluster: str) -> Traffic:
        """Return the counters of one cluster."""
        return Traffic(
            out=self._bytes.labels(cluster, "out"),
            back=self._bytes.labels(cluster, "in"),
            pings=self._pings.labels(cluster),
            proofs=self._proofs.labels(cluster),
        )


class SharedFolder:
    """The folder in which an edge's workers count, as their parent uses it."""

    def __init__(self, parent_folder: Path) -> None:
        """Make the folder below ``parent_folder``. Raises ``OSError``."""
        self.path = parent_folder / "metrics"
        self.path.mkdir(0o700)
        _allocate(self.path / _ENDED_WORKERS)

    def retire(self, pid: int) -> None:
        """Drop the gauges of a worker that has ended, and add its counts to a common file.

        Otherwise each worker that dies would leave a file.
        """
        mark_process_dead(pid, str(self.path))
        ended = self.path / f"counter_{pid}.db"
        try:
            counts = list(MmapedDict.read_all_values_from_file(str(ended)))
        except OSError:
            # The worker ended before it counted anything.
            return
        with contextlib.closing(MmapedDict(str(self.path / _ENDED_WORKERS))) as total:
            for key, value, _, _ in counts:
                total.write_value(key, total.read_value(key)[0] + value, 0.0)
        ended.unlink()


def _allocate(path: Path) -> None:
    """Make a file with all its blocks allocated. Raises ``OSError``.

    A write into a mapped file without a block on a full disk ends the process (SIGBUS,
    ``mmap(2)``) instead of raising an error.
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
    """What an edge's parent reports of its audit log."""

    written: int = 0
    """Lines written since the start."""
    waiting: int = 0
    """Lines in memory that wait until the file can be written."""
    lost: int = 0
    """Lines lost since the start because too many were waiting."""


class ParentFigures(NamedTuple):
    """What an edge's parent reports of itself; counts since its start."""

    workers: int = 0
    worker_ends: int = 0
    refused_configurations: int = 0
    audit: AuditFigures = AuditFigures()


class ParentMetrics(Collector):
    """Metrics of an edge's parent."""

    def __init__(self, figures: Callable[[], ParentFigures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield one sample of each metric."""
        figures = self._figures()
        yield _build()
        yield GaugeMetricFamily("relay_edge_workers", "Running workers.", figures.workers)
        yield CounterMetricFamily(
            "relay_edge_worker_ends", "Workers that ended.", figures.worker_ends
        )
        yield CounterMetricFamily(
            "relay_edge_refused_configurations",
            "Times that the changed configuration was invalid and the previous one was kept.",
            figures.refused_configurations,
        )
        audit = figures.audit
        yield CounterMetricFamily(
            "relay_edge_audit_lines", "Lines written to the audit log.", audit.written
        )
        yield GaugeMetricFamily(
            "relay_edge_audit_waiting_lines",
            "Lines in memory that wait until the audit log can be written.",
            audit.waiting,
        )
        yield CounterMetricFamily(
            "relay_edge_audit_lost_lines",
            "Lines of the audit log that were lost because too many were waiting.",
            audit.lost,
        )


def edge_registry(folder: SharedFolder, parent: ParentMetrics) -> CollectorRegistry:
    """Make the registry that an edge's parent serves."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder.path))
    registry.register(parent)
    return registry


class AgentFigures(msgspec.Struct, kw_only=True):
    """What an agent reports of all its kernels and of its own work; counts since its start."""

    kernels: int = 0
    sessions: int = 0
    connections: int = 0
    journal_bytes: int = 0
    largest_journal: int = 0
    """Bytes of the largest journal."""
    journals_failing: int = 0
    starts: int = 0
    start_failures: int = 0
    holder_deaths: int = 0
    messages: int = 0
    unsaved: int = 0
    gaps: int = 0
    gap_messages: int = 0
    limit_hits: Mapping[str, int] = {}


_LIMIT_HITS: Final = (
    "Times that something was refused, cut, dropped or ended because of a limit, by setting."
)
_AGENT_GAUGES: Final = (
    ("kernels", "kernels", "Running kernels."),
    ("sessions", "sessions", "Clients that kernels remember, connected or not."),
    ("connections", "connections", "Clients that are connected to kernels."),
    ("journal_bytes", "journal_bytes", "Bytes of all kernels' journals on disk."),
    ("largest_journal_bytes", "largest_journal", "Bytes of the largest kernel's journal on disk."),
    ("failing_journals", "journals_failing", "Kernels whose journal cannot be written just now."),
)
_AGENT_COUNTERS: Final = (
    ("starts", "starts", "Requests to start a kernel."),
    ("start_failures", "start_failures", "Starts that failed."),
    ("holder_deaths", "holder_deaths", "Holders that died unexpectedly."),
    ("messages", "messages", "Messages from kernels, on all channels."),
    ("unsaved_messages", "unsaved", "Messages that could not be written to a journal."),
    ("gaps", "gaps", "Times that a reader was told of missing messages."),
    ("gap_messages", "gap_messages", "Messages that these readers missed, at most."),
)


class AgentMetrics(Collector):
    """Metrics of an agent; ``read`` returns the current figures."""

    def __init__(self, read: Callable[[], AgentFigures]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield one sample of each metric, and one per setting whose limit was reached."""
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
    """Make the registry that an agent serves, with figures of its process."""
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)
    return registry


def page(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Render all metrics in a format that ``accept``, the header, allows; and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _build() -> Metric:
    family = GaugeMetricFamily("relay_build_info", "The relay's version.", labels=["version"])
    family.add_metric([__version__], 1)
    return family
