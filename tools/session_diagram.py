"""Show the transitions of client sessions: ``python -m tools.session_diagram``.

The page is made of `relay.bridge.transitions`, the table that the code goes by. With ``--write`` it
goes into ``docs/sessions.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from relay.bridge.transitions import TRANSITIONS, SessionState, SessionTrigger, Step

PAGE: Final = Path(__file__).parents[1] / "docs" / "sessions.md"
_INTRODUCTION: Final = """\
# The states of a client session

A session is one client on one kernel ([architecture.md](architecture.md#sessions-and-cursors)).
What happens when clients come and go is a table in `bridge/transitions.py`: a state and what
happens give the next state and what is done on the way. This page is made of that table by
`python -m tools.session_diagram --write`.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_INTRODUCTION, *_diagram(), "", *_states(), "", *_table(), ""])


def _diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {_name(SessionState.UNKNOWN)}"
    for (state, trigger), transition in TRANSITIONS.items():
        yield f"    {_name(state)} --> {_name(transition.state)}: {trigger.name.lower()}"
    yield "```"


def _states() -> Iterator[str]:
    yield "| State | Means |"
    yield "|---|---|"
    for state in SessionState:
        yield f"| {_name(state)} | {state.value} |"


def _table() -> Iterator[str]:
    yield "| In state | When | Then | Next state |"
    yield "|---|---|---|---|"
    for (state, trigger), transition in TRANSITIONS.items():
        row = _name(state), _what(trigger), _done(transition.steps), _name(transition.state)
        yield f"| {' | '.join(row)} |"


def _name(state: SessionState) -> str:
    return state.name.capitalize()


def _what(trigger: SessionTrigger) -> str:
    return f"`{trigger.name.lower()}`: {trigger.value}"


def _done(steps: tuple[Step, ...]) -> str:
    return "; ".join(step.value for step in steps) or "forget it"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(prog="python -m tools.session_diagram", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/sessions.md")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
