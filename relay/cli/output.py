"""Text for users of `relay up`, `relay down` and `relay token`."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from relay.supervisor import Ready

Style = Literal["", "bold", "bold green", "cyan", "dim", "yellow"]


class OutputLine(NamedTuple):
    """A line, and its style on a terminal."""

    text: str
    style: Style = ""


def ready(ready: Ready, state_dir: Path, uid: int, *, shared: bool) -> list[OutputLine]:
    """Return the lines that `relay up` prints when it is ready, with commands to paste.

    ``shared`` says that kernels of several users run as ``uid``.
    """
    cluster = ready.clusters[0]
    rest, channels = f"{ready.https_url}/{cluster}", f"{ready.wss_url}/{cluster}"
    ca = shlex.quote(ready.ca)
    others = ", ".join(ready.clusters)
    return [
        OutputLine("The relay is ready.", "bold green"),
        OutputLine(""),
        OutputLine(f"  REST      {ready.https_url}/<cluster>"),
        OutputLine(f"  Channels  {ready.wss_url}/<cluster>"),
        OutputLine(f"  Clusters  {others}"),
        OutputLine(f"  Token     {ready.token}"),
        OutputLine(f"  CA        {ready.ca}"),
        OutputLine(f"  Metrics   {ready.metrics.edge} (the agents' are in relay.json)"),
        OutputLine(""),
        OutputLine(f"JupyterLab on {cluster}:", "bold"),
        # JUPYTER_GATEWAY_CA_CERTS has no effect without a client certificate.
        OutputLine(f"  SSL_CERT_FILE={ca} \\", "cyan"),
        OutputLine(f"  JUPYTER_GATEWAY_WS_URL={channels} \\", "cyan"),
        OutputLine(f"  JUPYTER_GATEWAY_AUTH_TOKEN={ready.token} \\", "cyan"),
        OutputLine(f"  jupyter lab --gateway-url {rest}", "cyan"),
        OutputLine(""),
        OutputLine("curl:", "bold"),
        OutputLine(
            f"  curl --cacert {ca} -H 'Authorization: token {ready.token}' {rest}/api/kernelspecs",
            "cyan",
        ),
        OutputLine(""),
        OutputLine('VS Code, "Select Kernel" > "Existing Jupyter Server":', "bold"),
        OutputLine(f"  {rest}/?token={ready.token}", "cyan"),
        OutputLine("  It must trust the CA: close it, then start it with", "dim"),
        OutputLine(f"  NODE_EXTRA_CA_CERTS={ca} code", "cyan"),
        OutputLine(""),
        _isolation(uid, shared=shared),
        OutputLine("Logs: this terminal (stderr); logs of kernels and of their holders:", "dim"),
        OutputLine(f"  {state_dir}/<cluster>/kernels/<id>/*.log", "dim"),
        OutputLine("Ctrl-C stops the relay. Kernels keep running.", "dim"),
    ]


def _isolation(uid: int, *, shared: bool) -> OutputLine:
    if shared:
        text = f"All kernels run as uid {uid}, whoever starts them: users are not isolated."
        return OutputLine(text, "yellow")
    return OutputLine(
        f"All kernels run as uid {uid}, for one user only; --shared-uid admits more users.",
        "dim",
    )


def remaining_kernels(kernels: Counter[str], option: str) -> list[OutputLine]:
    """Return lines about kernels that outlive the relay; ``option`` is from `state_option`."""
    if not kernels:
        return [OutputLine("No kernel is running.")]
    number = kernels.total()
    verb, them = ("keeps", "it") if number == 1 else ("keep", "them")
    where = ", ".join(f"{cluster}: {n}" for cluster, n in sorted(kernels.items()))
    return [
        OutputLine(f"{count(number, 'kernel')} {verb} running ({where}).", "bold"),
        OutputLine(
            f"`relay up{option}` serves {them} again; `relay down --kernels{option}` ends {them}."
        ),
    ]


def count(number: int, noun: str) -> str:
    """Format a number with its noun: ``1 kernel``, ``2 kernels``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def state_option(path: Path, environ: Mapping[str, str]) -> str:
    """Return " --state-dir …" for this state directory; "" for the default one."""
    from relay.supervisor import default_state_dir

    return "" if path == default_state_dir(environ) else f" --state-dir {shlex.quote(str(path))}"


def show(lines: Iterable[OutputLine]) -> None:
    """Print to standard output, in colour on a terminal; a closed pipe is ignored."""
    with contextlib.suppress(OSError):
        if sys.stdout.isatty():
            _print_styled(lines)
        else:
            print(*(line.text for line in lines), sep="\n", flush=True)  # noqa: T201 - its purpose


def _print_styled(lines: Iterable[OutputLine]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in lines:
        # soft_wrap: a command to paste must not be broken at the terminal's edge.
        console.print(Text(line.text, style=line.style), soft_wrap=True)
