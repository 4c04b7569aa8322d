"""The holders of this node's kernels.

`registry` knows them and keeps a `client` of each; `connect` leads to a kernel's holder. It has a
kernel created (`create`, where `admission` finds room, under the `starts_lock`), or the kernel of a
dead holder adopted (`adopt`). `ended` remembers what is no more, `single_flight` does once what
several ask for, `stats` adds up figures, `stop_all` ends every kernel.
"""
