"""The holder processes of this node.

`registry` finds and keeps them; `client` calls one of them; `create` makes a new kernel's folder
and holder; `stop_all` ends every kernel; `stats` adds up their figures.
"""
