"""Two XLA threads on the CPU for every test, set before anything imports JAX."""

import os
import sys
from pathlib import Path

os.environ.setdefault("NPROC", "2")
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
