"""What happens to an HTTP request, from its head to its answer.

`pipeline` is the one entry; `cors`, `rate_limits` and `audit` are steps of it; `forward` passes a
REST request on to an agent, `channels` serves a kernel's WebSocket.
"""
