"""Jupyter messages as slices of bytes, the formats that carry them, and clients' sessions.

``messages`` are the messages, ``ws_codec`` and ``zmq_codec`` their formats on WebSockets and ZMQ,
``notices`` replace messages that a client cannot get. ``records`` travel between edge, agent and
holder, some with structs of ``control``; ``openings`` and ``versions`` are about a link's
beginning. ``session`` decides what each client gets, by the ``events`` of a kernel.

Pure: no I/O, and no clock but the ``now`` that callers pass in.
"""
