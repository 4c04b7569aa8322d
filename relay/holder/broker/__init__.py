"""Messages between the kernel and its clients.

`broker` performs what `bridge.session` decides; `inbound` is the way from clients to the kernel,
`outbound` the way back, through the journal; `activity` follows the kernel's state; `synthetic`
makes messages that no kernel sent; `probe` and `recovery` find out what was lost with a dead
holder.
"""
