"""One thread for all tests, and for the programs that they start: their models are too small for more, and
threads that spin would fight for the cores.
"""
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
