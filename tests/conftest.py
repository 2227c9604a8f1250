"""Two XLA threads for every test, set before anything imports JAX."""

import os

os.environ.setdefault("NPROC", "2")
