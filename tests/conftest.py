"""Two XLA threads on the CPU for every test, set before anything imports JAX."""

import os

os.environ.setdefault("NPROC", "2")
os.environ["JAX_PLATFORMS"] = "cpu"
