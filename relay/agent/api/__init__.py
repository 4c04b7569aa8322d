"""The agent's HTTP interface.

`app` verifies tickets and routes; `rest` answers; `access` decides what a caller may do with a
kernel; `start_request` and `parameters` read a request for a kernel; `sessions`, `kernelspecs` and
`messages` (the journal as JSON lines) are its other resources.
"""
