"""Maximum-entropy reinforcement learning in JAX: one self-contained file per algorithm."""

import re
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from cleanrl_maxent import environments as environments


@cache
def algorithms() -> dict[str, ModuleType]:
    """The algorithms by name: the modules of this package that define `Args` and `train`."""
    texts = {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))}
    return {
        name: import_module(f"{__name__}.{name}")
        for name, text in texts.items()
        if re.search(r"^class Args\b", text, re.MULTILINE) and re.search(r"^def train\b", text, re.MULTILINE)
    }
