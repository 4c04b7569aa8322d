"""Privilege separation: the few things that take root, and nothing else.

`helper` runs as root and serves one agent over `protocol`; `os_users` maps principals to OS users;
`cleanup` ends and deletes, as its user, what is left of a kernel.
"""
