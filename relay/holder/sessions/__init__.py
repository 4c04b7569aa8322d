"""What is known of clients, in files that outlive the holder.

`store` is the log of client sessions and unfinished requests, `version1` reads what earlier holders
have left, `grants` are the other users who may use the kernel.
"""
