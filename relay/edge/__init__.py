"""The edge: the public door. Authenticates, authorises, routes, forwards; knows no message."""
