"""The way to the agents: `client` sends requests, `link` carries a kernel's records."""
