from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.planting import keys, plant
from tools import log_events

LOG = "import structlog\nlog = structlog.get_logger(__name__)\n"


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("log.info('agent_down')", False),
        ("log.info('agent_down', agent='Some Agent')", False),
        ("log.error('ready')", False),
        ("log.info('http2_refused')", False),
        ("log.bind(a=1).info('ready')", False),
        ("voice.error('Shell', 'Any Text')", False),
        ("log.info('edge ready')", True),
        ("log.warning('agentDown')", True),
        ("log.debug('agent-down')", True),
        ("log.exception('_down')", True),
        ("log.info('agent__down')", True),
        ("log.info(f'agent_{name}')", True),
        ("log.info(event)", True),
        ("log.critical()", True),
        ("log.bind(a=1).info('edge ready')", True),
    ],
)
def test_an_event_that_is_no_word_is_noticed(tmp_path: Path, call: str, found: bool) -> None:
    plant(tmp_path, {"relay/edge/a.py": f"{LOG}def f(name, event, voice):\n    {call}\n"})
    assert bool(keys(log_events.check, tmp_path)) is found


def test_the_report_says_where(tmp_path: Path) -> None:
    plant(tmp_path, {"relay/edge/a.py": f"{LOG}log.info('edge ready')\n"})
    (finding,) = log_events.check(tmp_path)
    assert finding.text.startswith("relay/edge/a.py:3: the event 'edge ready'")


def test_the_standard_librarys_loggers_take_sentences(tmp_path: Path) -> None:
    text = "import logging\nlog = logging.getLogger(__name__)\nlog.info('Again in %d s.', 1)\n"
    plant(tmp_path, {"relay/client/a.py": text})
    assert keys(log_events.check, tmp_path) == []
