"""The examples of docs/client.md, run as they stand there."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.system.running import RunningRelay

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
SAID = ["stdout hello\n\n2\n", "Hello Ada\n\n", "100 lines\n"]


@pytest.mark.parametrize(("example", "said"), [*zip(EXAMPLES, SAID, strict=True)])
async def test_an_example_runs(
    relay: RunningRelay, tmp_path: Path, example: str, said: str
) -> None:
    info = relay.info
    environ = {
        **relay.environ,
        "JUPYTER_GATEWAY_URL": f"{info.https_url}/alpha",
        "JUPYTER_GATEWAY_WS_URL": f"{info.wss_url}/alpha",
        "JUPYTER_GATEWAY_AUTH_TOKEN": info.token,
        "SSL_CERT_FILE": str(info.ca),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", example),
        cwd=tmp_path,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert output.decode() == said
