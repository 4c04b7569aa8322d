"""The relay: an authenticating WebSocket-to-ZMQ reverse proxy for Jupyter kernels."""

__version__ = "0.1.0"
