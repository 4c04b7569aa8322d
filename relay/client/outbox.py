"""What a session sends, and sends again on a new WebSocket. Sans I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Outbox:
    """Requests and stdin answers until the kernel has received them, for sure.

    ``in_flight`` limits the requests that were sent and have no response yet: the relay remembers
    a limited number of requests (``sessions.repeats``), by which it drops those sent again.
    """

    def __init__(self, in_flight: int) -> None:
        self.on_unsent: Callable[[], None] = lambda: None
        """Called when there is something to send."""
        self._in_flight_limit = in_flight
        self._requests: dict[str, bytes] = {}
        """Payloads by ``msg_id``, those in flight included, in their order."""
        self._answers: dict[str, bytes] = {}
        """The latest stdin answer for each request, by the request's ``msg_id``."""
        self._unsent: deque[str] = deque()
        self._unsent_answers: deque[str] = deque()
        self._in_flight: set[str] = set()

    def request(self, msg_id: str, payload: bytes) -> None:
        """Send a request."""
        self._requests[msg_id] = payload
        self._unsent.append(msg_id)
        self.on_unsent()

    def answer(self, asker: str, payload: bytes) -> None:
        """Answer the request ``asker``; the payload replaces its previous answer."""
        self._answers[asker] = payload
        self._unsent_answers.append(asker)
        self.on_unsent()

    def received(self, msg_id: str) -> None:
        """Drop a request that has got a response, or that nobody waits for any more."""
        self._requests.pop(msg_id, None)
        if msg_id in self._in_flight:
            self._in_flight.discard(msg_id)
            if self._unsent:
                self.on_unsent()

    def answered(self, asker: str) -> None:
        """Drop the answer to a request that has asked again, or has ended."""
        self._answers.pop(asker, None)

    def reconnected(self) -> None:
        """Mark everything that may not have arrived as unsent, in its order."""
        self._in_flight.clear()
        self._unsent = deque(self._requests)
        self._unsent_answers = deque(self._answers)
        self.on_unsent()

    def next_unsent(self) -> bytes | None:
        """Return the next payload to send; None where there is none, or too much in flight.

        Answers are sent first, since requests may wait for them.
        """
        while self._unsent_answers:
            answer = self._answers.get(self._unsent_answers.popleft())
            if answer is not None:
                return answer
        while self._unsent and len(self._in_flight) < self._in_flight_limit:
            msg_id = self._unsent.popleft()
            request = self._requests.get(msg_id)
            if request is not None:
                self._in_flight.add(msg_id)
                return request
        return None
