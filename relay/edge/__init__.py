"""The edge: the relay's public side, the only program that clients reach.

`parent` keeps the `worker` processes running and hands them its configuration (`reload`) in a
private directory (`shared_dir`). Rooms: `http` (the pipeline of a request), `listener`
(connections before HTTP), `authn` (who is asking), `upstream` (the way to the agents).
"""
