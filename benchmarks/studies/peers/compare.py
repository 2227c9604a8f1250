"""Are our on-policy updates those of Stable-Baselines3 and sb3-contrib, where conventions agree?

    python benchmarks/studies/peers/compare.py --peer-python ../peers/bin/python

Makes parameters and rollouts from a seed, learns from them with our `update` and, in the peers' own Python,
with their `train()`, all in float64, and compares the results. Writes `rows.csv` beside this file.
"""

import csv
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from benchmarks.studies.peers.cases import CASES, Arrays, learn
from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.devices import set_up_device
from cleanrl_maxent.common.errors import UsageError, require

PEER = Path(__file__).with_name("peer.py")
TOLERANCE = 1e-9
KINDS = {
    "advantages": lambda name: name == "advantage",
    "targets of V": lambda name: name == "value_target",
    "direction of the step": lambda name: name.startswith("direction/"),
    "actor": lambda name: name.startswith("after/") and "value" not in name,
    "critic": lambda name: name.startswith("after/") and "value" in name,
}


@dataclass(frozen=True)
class Args:
    """Our updates beside a peer's, on the same rollouts."""

    peer_python: Path = Path("../peers/bin/python")  # python with stable-baselines3 and sb3-contrib
    rollouts: int = 5  # updates of each algorithm, one after the other
    seed: int = 1  # of parameters and rollouts
    out: Path = PEER.with_name("rows.csv")


def ask_peer(python: Path, given: Arrays) -> Arrays:
    """The peer's results for `given`. Raises UsageError, with the peer's errors, if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        case, found = Path(folder, "case.npz"), Path(folder, "updates.npz")
        np.savez(case, **given)  # pyright: ignore[reportArgumentType]
        command = [str(python), str(PEER), str(case), str(found)]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # several would wait for each other
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
        if done.returncode:
            raise UsageError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        with np.load(found) as results:
            return dict(results)


def split(results: Arrays, rollouts: int) -> list[Arrays]:
    """Results by rollout, with the direction of the policy's step scaled to length 1."""
    found: list[Arrays] = [{} for _ in range(rollouts)]
    for name, value in results.items():
        number, _, rest = name.partition("/")
        found[int(number)][rest] = value
    for arrays in found:
        # ours is scaled to a divergence of δ, the peer's is not
        names = [name for name in arrays if name.startswith("direction/")]
        length = np.sqrt(sum(float((arrays[name] ** 2).sum()) for name in names))
        arrays |= {name: arrays[name] / length for name in names}
    return found


def differences(
    given: Arrays, ours: list[Arrays], theirs: list[Arrays]
) -> Iterator[tuple[str, float, float]]:
    """Each quantity, its largest absolute difference over all updates, and its size.

    The size of a quantity is its largest absolute value, or for parameters the largest change by an update.
    """
    before = {f"after/{n[7:]}": x for n, x in given.items() if n.startswith("before/")}
    for kind, belongs in KINDS.items():
        difference = size = 0.0
        for earlier, mine, peer in zip([before, *ours], ours, theirs, strict=False):
            require(mine.keys() == peer.keys(), f"results differ in kind: {mine.keys() ^ peer.keys()}")
            for name in filter(belongs, mine):
                require(bool(np.isfinite([mine[name], peer[name]]).all()), f"{name} is not finite")
                start = earlier[name] if name.startswith("after/") else 0
                difference = max(difference, float(np.abs(mine[name] - peer[name]).max()))
                size = max(size, float(np.abs(mine[name] - start).max()))
        if size:
            yield kind, difference, size


def main(args: Args) -> None:
    """Prints the table and writes the rows. Raises UsageError, also if a difference is too large."""
    set_up_device("cpu")
    jax.config.update("jax_enable_x64", True)
    rows, largest = [], 0.0
    for name, case in CASES.items():
        for discrete in (False, True):
            given, results, metrics = learn(name, discrete, args.seed, args.rollouts)
            found = (split(x, args.rollouts) for x in (results, ask_peer(args.peer_python, given)))
            actions = "discrete" if discrete else "continuous"
            for kind, difference, size in differences(given, *found):
                rows.append((name, case.package, actions, kind, f"{difference:.1e}", f"{size:.2g}"))
                largest = max(largest, difference)
            figures = [n for n in ("losses/clipfrac", "losses/step_fraction", "losses/kl") if n in metrics[0]]
            print(name, actions, {n: [round(m[n], 3) for m in metrics] for n in figures})
    header = ("algorithm", "peer", "actions", "quantity", "largest_difference", "size")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    print(args.out.read_text(), end="")
    require(largest <= TOLERANCE, f"a difference of {largest:.1e} exceeds {TOLERANCE:.0e}")


if __name__ == "__main__":
    run_script(Args, main)
