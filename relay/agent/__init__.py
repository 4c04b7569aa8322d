"""The agent: one cluster's kernels on one node, served to the edge.

`main` is the process. Rooms: `api` (REST), `channels` (WebSocket frames), `holders` (the holder
processes of this node), `launchers` (how a holder is started), `privsep` (what takes root).
"""
