"""What is known of clients, in files that outlive the holder.

`store` keeps the client sessions, `requests` what the kernel has not finished, `grants` who else
may use the kernel.
"""
