"""A kernel's channels: `transcoder` turns messages into WebSocket frames and back.

`gateway_mode` adapts messages to what Jupyter Server in gateway mode can take.
"""
