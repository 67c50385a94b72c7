"""The kernels for GPUs, in Triton. Not imported where triton is not installed."""
