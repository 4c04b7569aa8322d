"""The way to the agents.

`client` sends a `call` to the agents of a `cluster` and returns a `response`; `link` carries the
records of a kernel's channels. Nothing outside this room sees aiohttp's client or its errors.
"""
