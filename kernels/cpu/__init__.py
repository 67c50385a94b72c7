"""The kernels for CPUs: the Python side of the C library (kernels/c), and torch's own flash attention."""
