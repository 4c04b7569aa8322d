"""`jupyter_kernel_test`, the suite for authors of kernels, on an ipykernel behind the relay.

It wants a client as jupyter_client's, which `jupyter-kernel-client` has for WebSockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty
from typing import Any, ClassVar

import jupyter_kernel_test
import pytest
from jupyter_kernel_client import JupyterSubprotocol, KernelHttpManager

from tests.system.running import RunningRelay

pytestmark = pytest.mark.slow


class _OverTheRelay(jupyter_kernel_test.KernelTests):  # type: ignore[misc] # it has no types
    """What is expected of an ipykernel, as in the suite's own example."""

    __test__ = False
    subprotocol: ClassVar[JupyterSubprotocol]

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples: ClassVar[list[dict[str, Any]]] = [{"text": "zi", "matches": {"zip"}}]
    complete_code_samples: ClassVar[list[str]] = ["1", "print('hello, world')", "def f(): pass\n\n"]
    incomplete_code_samples: ClassVar[list[str]] = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples: ClassVar[list[str]] = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result: ClassVar[list[dict[str, str]]] = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    ]
    code_display_data: ClassVar[list[dict[str, str]]] = [
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))",
            "mime": "text/html",
        },
        {
            "code": "from IPython.display import Math, display; display(Math('\\\\frac{1}{2}'))",
            "mime": "text/latex",
        },
    ]
    code_history_pattern = "1?2*"
    supported_history_operations: ClassVar[tuple[str, ...]] = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    support_iopub_welcome = False
    """It is for who subscribes to the kernel's ZeroMQ socket, and that is the relay."""

    @classmethod
    def setUpClass(cls) -> None:
        """Nothing: the fixture has what it needs."""

    @classmethod
    def tearDownClass(cls) -> None:
        """As above."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _client(cls, relay: RunningRelay) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REQUESTS_CA_BUNDLE", relay.info.ca)
            patch.setenv("WEBSOCKET_CLIENT_CA_BUNDLE", relay.info.ca)
            manager = KernelHttpManager(
                f"{relay.info.https_url}/alpha",
                relay.info.token,
                client_kwargs={"subprotocol": cls.subprotocol},
            )
            manager.start_kernel("python3")
            cls.km, cls.kc = manager, manager.client
            cls.kc.start_channels()
            cls.kc.wait_for_ready(60)
            yield
            cls.kc.stop_channels()
            manager.shutdown_kernel(now=True)

    def tearDown(self) -> None:
        """Nothing of one test is left for the next."""
        for channel in (self.kc.shell_channel, self.kc.iopub_channel):
            try:
                while True:
                    channel.get_msg(timeout=0.1)
            except Empty:
                continue


class TestLegacy(_OverTheRelay):
    __test__ = True
    subprotocol = JupyterSubprotocol.DEFAULT


@pytest.mark.usefixtures("v1_runs_at_all")
class TestV1(_OverTheRelay):
    __test__ = True
    subprotocol = JupyterSubprotocol.V1
