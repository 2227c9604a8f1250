"""Time that a process spends in its environments, which limits ours and the peers' rate."""

import time
from collections.abc import Callable
from typing import Any


class EnvironmentClock:
    """Adds up the seconds in the steps of a vector environment: simulation, wrappers and resets.

    The rest is acting and learning, normalisation included. `seconds[n]` is the sum after n steps of the
    whole vector.
    """

    def __init__(self, vector_env: type, step: str):
        """Times the method `step` of the class `vector_env`, which steps every environment once."""
        self.seconds = [0.0]
        setattr(vector_env, step, self.timed(getattr(vector_env, step)))

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, on the clock."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds.append(self.seconds[-1] + time.perf_counter() - began)
            return result

        return run

    def between(self, first: int, last: int) -> float:
        """Seconds in the environments between two numbers of steps of the whole vector."""
        return self.seconds[last] - self.seconds[first]
