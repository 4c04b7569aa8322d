"""Kernels: `kernel_process` launches one through jupyter_client, `sockets` are its ZeroMQ sockets.

`pidfd_process` is a kernel process that is no child of this holder.
"""
