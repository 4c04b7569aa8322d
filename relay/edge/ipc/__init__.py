"""Typed calls from an edge's workers to their parent, and the services that answer them.

`protocol` is the wire, `service` how a service is declared, `client` a worker's end and `server`
the parent's; `quotas` and `audit_file` are services.
"""
