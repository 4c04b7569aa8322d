"""The journal: every message to clients, numbered, in files.

`store` appends and reads, `segments` is one file, `replies` keeps replies longer than output.
"""
