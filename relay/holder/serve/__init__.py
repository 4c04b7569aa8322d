"""The unix socket that agents connect to.

`server` accepts; `client` reads the journal for one client; `journal_reader` reads it for a request
that belongs to no session.
"""
