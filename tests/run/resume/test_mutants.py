"""Mutants: every part of a checkpoint is needed."""

import re
import shutil

import jax
import numpy as np
import pytest

from cleanrl_maxent import sac, td3
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run import run
from tests.support.runs import SMALL, differences, digests, interrupted, train


def zeroed(*patterns):
    def mutate(checkpoint):
        hit = [name for name in checkpoint.arrays if any(re.search(pattern, name) for pattern in patterns)]
        assert hit, patterns
        return checkpoint._replace(
            arrays=checkpoint.arrays | {n: np.zeros_like(checkpoint.arrays[n]) for n in hit}
        )

    return mutate


def environments(**changes):
    def mutate(checkpoint):
        snapshots = [snapshot | changes for snapshot in checkpoint.meta["envs"]]
        return checkpoint._replace(meta=checkpoint.meta | {"envs": snapshots})

    return mutate


def record_lost(checkpoint):
    records = [record | {"bytes": 0} for record in checkpoint.meta["records"]]
    return checkpoint._replace(meta=checkpoint.meta | {"records": records})


def step_lost(checkpoint):
    return checkpoint._replace(steps=checkpoint.steps - 1)


def one_transition_lost(checkpoint):
    """The reward of one stored transition."""
    *before, last = checkpoint.segments
    transitions = last.load()
    reward = transitions.reward.copy()
    reward[0, 5] += 1
    changed = transitions.replace(reward=reward)
    return checkpoint._replace(segments=[*before, last._replace(load=lambda: changed)])


def losses_lost(checkpoint):
    kept = {name: array for name, array in checkpoint.arrays.items() if not name.startswith("metrics/")}
    assert len(kept) < len(checkpoint.arrays)
    return checkpoint._replace(arrays=kept)


def unchanged(checkpoint):
    return checkpoint


def segment_lost(checkpoint):
    """Half of the ring."""
    first, second, *others = checkpoint.segments
    zero = jax.tree.map(np.zeros_like, second.load())
    return checkpoint._replace(segments=[first, second._replace(load=lambda: zero), *others])


MUTANTS = {
    "actor": zeroed("^state/actor/params"),
    "actor's optimiser, first moment": zeroed("^state/actor/opt_state/0/mu"),
    "actor's optimiser, second moment": zeroed("^state/actor/opt_state/0/nu"),
    "actor's optimiser, count": zeroed("^state/actor/opt_state/0/count"),
    "critics": zeroed("^state/critics/params"),
    "critics' optimiser": zeroed("^state/critics/opt_state/0/mu"),
    "target critics": zeroed("^state/target_critics"),
    "temperature": zeroed("^state/alpha/params"),
    "temperature's optimiser": zeroed("^state/alpha/opt_state/0/mu"),
    "transition in flight": zeroed("^envs/transition/reward"),
    "a transition of the replay": one_transition_lost,
    "a segment of the replay": segment_lost,
    "actions since the reset": zeroed("^envs/actions"),
    "random state of the reset": environments(before=None),
    "count of steps": step_lost,
    "length of the record": record_lost,
}
REFUSED = {"actions since the reset", "random state of the reset"}
OF_TD3 = {
    "last known losses": zeroed("^metrics/losses/actor_loss"),
    "all losses": losses_lost,
    "target actor": zeroed("^state/target_actor"),
    "exploration noise": zeroed("^state/noise"),
}


def stopped_and_reference(folder, args, at, algorithm):
    """The folder of a run of 400 steps that was stopped `at` a step, and what it is to end with."""
    with pytest.MonkeyPatch.context() as patch:
        interrupted(args, folder / "run", patch, at, algorithm)
    train(args, folder / "reference", algorithm)
    return folder / "run", digests(folder / "reference")


@pytest.fixture(scope="module")
def of_sac(tmp_path_factory):
    args = SMALL | dict(total_timesteps=400, eval_episodes=0)
    return sac, args, *stopped_and_reference(tmp_path_factory.mktemp("sac"), args, 290, sac)


@pytest.fixture(scope="module")
def of_td3(tmp_path_factory):
    """Its actor learns at steps 110, 170, 230, 290, 350; a row of losses, at 300, comes before the next."""
    args = SMALL | dict(total_timesteps=330, eval_episodes=0, policy_frequency=60, noise="ou")
    return td3, args, *stopped_and_reference(tmp_path_factory.mktemp("td3"), args, 293, td3)


def resumed(algorithm, args, source, mutate, folder, monkeypatch):
    """What the stopped run ends with if its checkpoint is read with a mutation."""
    shutil.copytree(source, folder)
    find = run.find_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(run, "find_checkpoint", lambda *given: mutate(find(*given)))
        train(args, folder, algorithm)
    return digests(folder)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [None, *MUTANTS])
def test_mutants_are_caught(mutant, of_sac, tmp_path, monkeypatch):
    """Dropping one part of the state changes the end, or is refused; dropping none does not."""
    algorithm, args, source, reference = of_sac
    given = algorithm, args, source, MUTANTS.get(mutant, unchanged), tmp_path / "run", monkeypatch
    if mutant in REFUSED:
        with pytest.raises(UsageError, match="cannot be restored exactly"):
            resumed(*given)
        return
    assert bool(differences(reference, resumed(*given))) == (mutant is not None)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [None, *OF_TD3])
def test_mutants_with_delays_are_caught(mutant, of_td3, tmp_path, monkeypatch):
    """The same of an algorithm whose actor learns now and then, with noise that remembers."""
    algorithm, args, source, reference = of_td3
    found = resumed(algorithm, args, source, OF_TD3.get(mutant, unchanged), tmp_path / "run", monkeypatch)
    wrong = differences(reference, found)
    assert bool(wrong) == (mutant is not None)
    if mutant in ("last known losses", "all losses"):
        assert "seed-1/metrics.jsonl" in wrong
