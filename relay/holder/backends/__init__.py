"""Kernels: `base` is what a backend has to offer, `local` the one for kernels of this machine.

Of `local`: `kernel_process` launches through jupyter_client, `pidfd_process` is a kernel process
that is no child of this holder, `kernel_log` what it prints, `sockets` are the ZeroMQ sockets.
"""
