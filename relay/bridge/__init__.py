"""Between the wire formats: Jupyter messages as slices of bytes. Pure: no I/O, no clock."""
