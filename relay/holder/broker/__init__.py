"""Messages between the kernel and its clients.

`broker` performs what `bridge.session` decides; `activity` follows the kernel's state; `synthetic`
makes messages that no kernel sent; `probe` and `recovery` find out what was lost with a dead
holder.
"""
