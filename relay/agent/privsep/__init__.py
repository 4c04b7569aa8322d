"""Privilege separation: the few things that take root's rights, and nothing else.

`helper` runs as root and serves one agent over `protocol`; `folders` makes and moves kernels'
folders; `os_users` maps principals to OS users; `cleanup` ends and deletes, as its user, what is
left of a kernel.
"""
