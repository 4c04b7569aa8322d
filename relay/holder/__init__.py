"""The holder: one small process beside each kernel that owns its sockets from start to end."""
