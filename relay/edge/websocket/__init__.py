"""One client's WebSocket: its frames, its flow control, and what outlives a link to an agent."""
