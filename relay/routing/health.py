"""Which of a cluster's agents to try first, and how long a request may wait for one.

Learnt from the requests themselves. ``now`` is monotonic time in seconds, throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

MEMORY = 5.0
"""How long a failure says anything about an agent, in seconds.

An agent that failed once and was then left alone may have been back, and died again, unseen, as
happens to an edge worker whose neighbour gets the requests: a failure after a longer silence
begins a new outage, whose requests are held again. While requests come thick and fast they keep
the memory awake, so that during a long outage they are not held one and all.
"""


class AgentHealth:
    """What is known of one agent, from the last requests to it."""

    def __init__(self) -> None:
        self.down_since: float | None = None
        """When the outage began that lasts; ``None`` while none is known of."""
        self.last_success = -math.inf
        self.last_failure = -math.inf

    def succeeded(self, now: float) -> None:
        """Note that the agent answered, whatever it said."""
        self.last_success = now
        self.down_since = None

    def failed(self, now: float) -> None:
        """Note that the agent could not be reached, or broke off."""
        if self.down_since is None or now - self.last_failure > MEMORY:
            self.down_since = now
        self.last_failure = now

    def is_suspect(self, now: float) -> bool:
        """Tell whether the agent is down and failed not long ago."""
        return self.down_since is not None and now - self.last_failure <= MEMORY


class ClusterAgents:
    """The agents of one cluster; any of them serves any of its kernels."""

    def __init__(self, urls: Iterable[str]) -> None:
        """Take the agents in the order of preference. Raises ``ValueError`` when there is none."""
        self._agents = {url: AgentHealth() for url in urls}
        if not self._agents:
            raise ValueError("a cluster needs at least one agent")

    def succeeded(self, url: str, now: float) -> None:
        """Note that the agent at ``url`` answered. Raises ``KeyError`` for a foreign one."""
        self._agents[url].succeeded(now)

    def failed(self, url: str, now: float) -> None:
        """Note that the agent at ``url`` failed. Raises ``KeyError`` for a foreign one."""
        self._agents[url].failed(now)

    def is_down(self, url: str) -> bool:
        """Tell whether the last try of ``url`` failed. Raises ``KeyError`` for a foreign one."""
        return self._agents[url].down_since is not None

    def candidates(self, now: float) -> list[str]:
        """Return every agent, the most promising first.

        Those not known to be down, of them the one that answered last; then those that are, of
        them the one that has been left alone for longest, so that repeated tries go round. None is
        left out: the only way to see that an agent is back is to try it.
        """
        return sorted(self._agents, key=lambda url: _rank(self._agents[url], now))

    @property
    def down_since(self) -> float | None:
        """When the last agent went down; ``None`` while one of them may be up."""
        latest = -math.inf
        for agent in self._agents.values():
            if agent.down_since is None:
                return None
            latest = max(latest, agent.down_since)
        return latest

    def hold_deadline(self, now: float, hold: float) -> float:
        """Return until when a request may be held while the cluster comes back.

        ``hold`` seconds from the moment the cluster went down, not from the request: while an agent
        restarts, clients wait; once it has been gone for longer, the time returned is past and
        they are told at once.
        """
        down_since = self.down_since
        return (now if down_since is None else down_since) + hold


def _rank(agent: AgentHealth, now: float) -> tuple[bool, float]:
    suspect = agent.is_suspect(now)
    return suspect, agent.last_failure if suspect else -agent.last_success
