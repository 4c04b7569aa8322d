"""The agent: one cluster's kernels on one node, served to the edge.

`main` is the process. Rooms, each of which imports those behind it only: `api` (REST), `channels`
(WebSocket frames), `holders` (the holders of this node's kernels), `launchers` (how a holder is
started, and whether one runs), `privsep` (what takes root's rights). `holder_process` is how one
process is run.
"""
