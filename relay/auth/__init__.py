"""Authentication and authorisation: credentials, tokens, tickets and policy.

``credentials`` finds what a request presents, ``chain`` asks the authenticators in order,
``tokens`` and ``jwt`` (with ``jwks`` and ``base64url``) verify it, ``policy`` grants rights by
rules, ``ownership`` applies them to one kernel, ``tickets`` carries them from edge to agent,
``origin`` judges pages of browsers, ``audit`` makes and verifies the audit log's lines.

Pure: no I/O, and no clock but the ``now`` that callers pass in. Everything here fails closed: what
is not fully understood is refused.
"""
