"""The one table of routes, for edge and agents alike.

The edge authorises by it the very request that an agent performs. A new route is one entry here,
and one handler under its name: in ``agent/api/rest.py``, or in ``edge/http/pipeline.py`` for what
the edge answers itself.
"""

from __future__ import annotations

from typing import Final

from relay.routing.table import ANY_METHOD, Retry, Route, RouteTable, Scope, TimeoutClass

_LIST: Final = frozenset({"list"})
_START: Final = frozenset({"start"})
_STOP: Final = frozenset({"stop"})
_USE: Final = frozenset({"use"})
_VIEW: Final = frozenset({"view"})
_SEE: Final = _VIEW | _USE
"""With one of these a caller may know of a kernel, and learn that something else is forbidden."""

_EDGE: Final = (
    Route(name="healthz", scope=Scope.ROOT, method=ANY_METHOD, pattern="healthz"),
    Route(name="readyz", scope=Scope.ROOT, method=ANY_METHOD, pattern="readyz"),
    # VS Code asks for these before it shows a credential. To it 404 means "no password, no
    # JupyterHub", and 401 makes it prompt for a password (vscode-jupyter,
    # jupyterPasswordConnect.ts and userServerUrlProvider.ts). The answer must not depend on
    # whether the cluster exists.
    Route(name="vscode-tree", scope=Scope.EDGE, method=ANY_METHOD, pattern="{cluster}/tree"),
    Route(name="vscode-login", scope=Scope.EDGE, method=ANY_METHOD, pattern="{cluster}/login"),
    Route(name="vscode-hub", scope=Scope.EDGE, method=ANY_METHOD, pattern="{cluster}/hub/api"),
)

_SERVER: Final = (
    Route(
        name="version",
        method="GET",
        pattern="api",
        actions=_LIST,
        retry=Retry.IDEMPOTENT,
    ),
    Route(
        name="status",
        method="GET",
        pattern="api/status",
        actions=_LIST,
        retry=Retry.IDEMPOTENT,
    ),
    Route(
        name="me",
        method="GET",
        pattern="api/me",
        actions=_LIST,
        # The answer lists what else the caller may do.
        optional_actions=_START | _SEE | _STOP | {"interrupt"},
        retry=Retry.IDEMPOTENT,
        query=("permissions",),
    ),
)

_KERNELS: Final = (
    Route(
        name="kernels",
        method="GET",
        pattern="api/kernels",
        actions=_LIST,
        # Kernels that the caller may neither view nor use are left out.
        optional_actions=_SEE,
        retry=Retry.IDEMPOTENT,
    ),
    Route(
        name="start",
        method="POST",
        pattern="api/kernels",
        actions=_START,
        retry=Retry.START,
        timeout=TimeoutClass.START,
        audit="kernel-started",
    ),
    Route(
        name="kernel",
        method="GET",
        pattern="api/kernels/{kernel_id}",
        actions=_SEE,
        retry=Retry.IDEMPOTENT,
    ),
    Route(
        name="stop",
        method="DELETE",
        pattern="api/kernels/{kernel_id}",
        actions=_STOP,
        optional_actions=_SEE,
        retry=Retry.IDEMPOTENT,
        timeout=TimeoutClass.START,
        audit="kernel-stopped",
    ),
    Route(
        name="interrupt",
        method="POST",
        pattern="api/kernels/{kernel_id}/interrupt",
        actions=frozenset({"interrupt"}),
        optional_actions=_SEE,
        audit="kernel-interrupted",
    ),
    Route(
        name="restart",
        method="POST",
        pattern="api/kernels/{kernel_id}/restart",
        # A restart loses what the kernel holds in memory, as a stop does.
        actions=_STOP,
        optional_actions=_SEE,
        timeout=TimeoutClass.START,
        audit="kernel-restarted",
    ),
    Route(
        name="channels",
        method="GET",
        pattern="api/kernels/{kernel_id}/channels",
        # Callers that may only view get the output, and can send nothing.
        actions=_SEE,
        upgrades=True,
        audit="channels-opened",
    ),
    Route(
        name="messages",
        method="GET",
        pattern="api/kernels/{kernel_id}/messages",
        # Old output only: nothing can be sent to the kernel here.
        actions=_SEE,
        retry=Retry.IDEMPOTENT,
        query=("since", "limit", "follow"),
        streams=True,
    ),
)

_GRANTS: Final = (
    Route(
        name="grants",
        method="GET",
        pattern="api/kernels/{kernel_id}/grants",
        actions=_USE,
        optional_actions=_VIEW,
        retry=Retry.IDEMPOTENT,
    ),
    Route(
        name="grant",
        method="PUT",
        pattern="api/kernels/{kernel_id}/grants/{user}",
        actions=_USE,
        optional_actions=_VIEW,
        retry=Retry.IDEMPOTENT,
        audit="granted",
    ),
    Route(
        name="revoke",
        method="DELETE",
        pattern="api/kernels/{kernel_id}/grants/{user}",
        actions=_USE,
        optional_actions=_VIEW,
        retry=Retry.IDEMPOTENT,
        audit="grant-taken",
    ),
)

_KERNELSPECS: Final = (
    Route(
        name="kernelspecs",
        method="GET",
        pattern="api/kernelspecs",
        actions=_LIST,
        # Kernelspecs that the caller may not start are left out; so with the next two routes.
        optional_actions=_START,
        retry=Retry.IDEMPOTENT,
        query=("user",),
        links=True,
    ),
    Route(
        name="kernelspec",
        method="GET",
        pattern="api/kernelspecs/{kernelspec}",
        actions=_LIST,
        optional_actions=_START,
        retry=Retry.IDEMPOTENT,
        links=True,
    ),
    Route(
        name="resource",
        method="GET",
        pattern="kernelspecs/{kernelspec}/{file}",
        actions=_LIST,
        optional_actions=_START,
        retry=Retry.IDEMPOTENT,
    ),
)

_SESSIONS: Final = (
    Route(
        name="sessions",
        method="GET",
        pattern="api/sessions",
        actions=_LIST,
        optional_actions=_SEE,
        retry=Retry.IDEMPOTENT,
    ),
    Route(
        name="new-session",
        method="POST",
        pattern="api/sessions",
        actions=_START,
        optional_actions=_SEE,
        retry=Retry.START,
        timeout=TimeoutClass.START,
        audit="session-started",
    ),
    Route(
        name="session",
        method="GET",
        pattern="api/sessions/{session_id}",
        actions=_SEE,
        retry=Retry.IDEMPOTENT,
    ),
    Route(
        name="change-session",
        method="PATCH",
        pattern="api/sessions/{session_id}",
        # A session that is given another kernel starts one, and ends the one that it had.
        actions=_START,
        optional_actions=_SEE | _STOP,
        retry=Retry.START,
        timeout=TimeoutClass.START,
        audit="session-changed",
    ),
    Route(
        name="end-session",
        method="DELETE",
        pattern="api/sessions/{session_id}",
        actions=_STOP,
        optional_actions=_SEE,
        retry=Retry.IDEMPOTENT,
        timeout=TimeoutClass.START,
        audit="session-ended",
    ),
)

ROUTES: Final = RouteTable((*_EDGE, *_SERVER, *_KERNELS, *_GRANTS, *_KERNELSPECS, *_SESSIONS))
