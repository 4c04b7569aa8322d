"""The holder: one process beside one kernel, the only place where ZeroMQ exists.

`main` is the process, `holder` puts together what it is made of, `lifecycle` starts, watches and
ends the kernel, `startup` waits until it has started, `culling` ends it when
nobody uses it, `record` is what is noted for others.

Rooms: `broker` (messages between clients and kernel), `backends` (the kernel and the way to it),
`journal` (what the kernel sent, numbered), `sessions` (what is known of clients and requests),
`serve` (the unix socket for agents).
"""
