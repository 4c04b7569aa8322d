"""Where a request goes: targets, routes, clusters and the health of their agents.

Pure: no I/O, and no clock but the ``now`` that callers pass in. It decides; ``edge`` acts.
"""
