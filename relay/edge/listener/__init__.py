"""Connections before HTTP: accepted, counted, decrypted.

`acceptor` accepts; `proxy_headers` finds the client's address behind a proxy, `sni` the name in a
ClientHello, `client_certs` the identity in a client certificate.
"""
