"""The holder: one process beside one kernel, the only place where ZeroMQ exists.

`main` is the process, `lifecycle` starts, watches and ends the kernel, `culling` decides when it is
idle. Rooms: `broker` (messages between clients and kernel), `backends` (the kernel process and its
sockets), `journal` (what the kernel sent, numbered), `sessions` (what is known of clients),
`serve` (the unix socket for agents).
"""
