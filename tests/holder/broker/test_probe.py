from __future__ import annotations

import json

import pytest

from relay.bridge.messages import Channel
from relay.holder.broker.probe import _ANSWERED, Probe, Probes
from relay.holder.broker.synthetic import SyntheticMessages

SHELL, IOPUB, CONTROL = Channel.SHELL, Channel.IOPUB, Channel.CONTROL


@pytest.fixture
async def probes() -> Probes:
    return Probes(SyntheticMessages())


def new(probes: Probes, channel: Channel = SHELL) -> tuple[Probe, str]:
    probe, message = probes.new(channel, "")
    return probe, json.loads(bytes(message.header))["msg_id"]


def state(probe: Probe) -> tuple[bool, bool, bool]:
    return probe.answered.is_set(), probe.idle.is_set(), probe.lost


async def test_a_probe_learns_of_its_own_reply_and_idle_status(probes: Probes) -> None:
    (one, name), (other, _) = new(probes), new(probes)
    probes.note(IOPUB, name, "busy")
    assert state(one) == (False, False, False)
    probes.note(SHELL, name, None)
    assert state(one) == (True, False, False)
    probes.note(IOPUB, name, "idle")
    assert state(one) == (True, True, False)
    assert state(other) == (False, False, False)


async def test_only_a_reply_on_shell_shows_that_the_kernel_answers(probes: Probes) -> None:
    _, name = new(probes, CONTROL)
    probes.note(CONTROL, name, None)
    assert not probes.answered.is_set()
    probes.note(SHELL, "one of before", None)
    assert probes.answered.is_set()


async def test_probes_end_with_the_kernel_process(probes: Probes) -> None:
    probe, name = new(probes)
    probes.lose()
    assert state(probe) == (True, True, True)
    probes.note(SHELL, name, None)


async def test_of_those_that_were_answered_the_last_are_remembered(probes: Probes) -> None:
    made = [new(probes) for _ in range(_ANSWERED + 10)]
    for _, name in made[1:]:
        probes.note(SHELL, name, None)
    new(probes)
    for _, name in made:
        probes.note(IOPUB, name, "idle")
    idle = [probe.idle.is_set() for probe, _ in made]
    # The first was not answered, so it is waited for.
    assert idle == [True] + [False] * 9 + [True] * _ANSWERED
