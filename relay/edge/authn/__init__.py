"""Authentication: whose request it is, and whether that still holds.

`authenticators` builds the configured chain; `token_file` reads static tokens, `jwt` with
`jwks_client` verifies issuers' tokens, `jupyterhub` asks a Hub and `jupyterhub_activity` reports to
it; `revalidation` re-authorises open WebSockets and streams.
"""
