"""Where a request goes.

`heads` and `paths` check a request's head and target, `routes` lists what can be asked for by the
types of `table`, `clusters` and `names` know the form of names, `health` which agent to try first.

Pure: no I/O, and no clock but the ``now`` that callers pass in. It decides; ``edge`` acts.
"""
