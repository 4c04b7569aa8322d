"""Who is asking, and may they: credentials, tokens, tickets and policy.

Pure: no I/O, and no clock but the ``now`` that callers pass in. Everything here fails closed: what
is not understood in full is refused.
"""
