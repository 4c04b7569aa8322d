"""Typed calls from an edge's workers to their parent, and the services that answer them."""
