"""Launchers: what has a holder run for a kernel, and knows whether one runs.

`base` is the contract. `local` launches on this machine; the OS user's rights that it needs come
from a runner: `own_user` where kernels run as the agent's own OS user, `other_user` where each
kernel runs as its owner's.
"""
