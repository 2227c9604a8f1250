"""What benchmarks/speed makes of its measurements, and what it measures."""

import json
import math
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.speed import accelerator, clock, compare, ours, rates
from benchmarks.speed.batches import BatchUpdate, learns_from_batches
from cleanrl_maxent import algorithms, ddpg, sac, td3
from cleanrl_maxent.common.env.make import EnvChoice
from cleanrl_maxent.common.env.seeds import SeedEnvs
from cleanrl_maxent.common.errors import UsageError
from tests.support.pytrees import changed


def figures(rate, bare=1.0, floor=1.0):
    parts = {"updates_per_second": bare, "floor_updates_per_second": floor}
    return {"1 seed": {"steps_per_second": rate}, "parts, 1": parts}


def test_ratios_are_taken_within_a_round():
    """The machine halves its speed in the second round, which no ratio may see."""
    rounds = [
        figures(90.0, bare=100.0, floor=125.0) | {"SBX": {"steps_per_second": 60.0}},
        figures(45.0, bare=50.0, floor=62.5) | {"SBX": {"steps_per_second": 30.0}},
    ]
    text = rates.table(rounds)
    assert "| SBX | 45 (30–60) | 1.50 (1.50–1.50) |" in text
    assert "| bare update ÷ its bound | 0.80 (0.80–0.80) |" in text
    assert "| whole run ÷ bare update | 0.90 (0.90–0.90) |" in text


def test_the_time_in_the_environments_is_taken_off():
    """A column of its own, empty for a program that was not timed so."""
    ours, peer = (
        {"steps_per_second": rate, "agent_steps_per_second": 3 * rate / scale, "host_megabytes": 7.0}
        for rate, scale in ((90.0, 1), (60.0, 2))
    )
    text = rates.table([{"1 seed": ours, "SB3": peer, "a script": {"steps_per_second": 45.0}}])
    assert (
        "| steps per second, all seeds | 1 seed ÷ this | outside the environments | 1 seed ÷ this |" in text
    )
    assert "| SB3 | 60 (60–60) | 1.50 (1.50–1.50) | 90 (90–90) | 3.00 (3.00–3.00) | 7 |" in text
    assert "| a script | 45 (45–45) | 2.00 (2.00–2.00) |  |  |  |" in text


def test_figures_of_another_algorithm_are_not_mixed(tmp_path, monkeypatch):
    """Measurements have the same names for every algorithm and environment."""
    monkeypatch.setattr(accelerator, "measure", lambda command, limit: {"device": {"kind": "H200"}})
    out = tmp_path / "speed.json"
    accelerator.main(accelerator.Args(algorithm="sac", num_seeds=(1,), measure=("process",), out=out))
    for given, words in (
        (dict(algorithm="td3"), "another algorithm"),
        (dict(env_id="Ant-v4"), "another env_id"),
        (dict(steps=16_000), "another steps"),
        (dict(algorithm="scc"), "unknown algorithm 'scc'"),
        (dict(num_seeds=(0,)), "num_seeds must be at least 1"),
    ):
        with pytest.raises(UsageError, match=words):
            accelerator.main(accelerator.Args(**given, out=out))


def test_the_clock_of_the_environments(monkeypatch):
    """It runs in the steps of the vector environment, and stands while the agent acts and learns."""
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    class Vector:
        def step(self, seconds):
            now[0] += seconds
            return "stepped"

    timed = clock.EnvironmentClock(Vector, "step")
    envs = Vector()
    assert [envs.step(seconds) for seconds in (2, 3, 4)] == ["stepped"] * 3
    now[0] += 100  # acting and learning
    envs.step(5)
    assert timed.between(0, 3) == 9 and timed.between(3, 4) == 5


def test_the_startup_of_a_script_is_not_its_speed(monkeypatch):
    """A script that starts for 7 s and then takes 100 steps a second, on a clock of its own."""
    clock = [0.0]

    def run(command, **options):
        flags = dict(flag.split("=") for flag in command[2:])
        clock[0] += 7 + int(flags["--total-timesteps"]) / 100
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(compare.subprocess, "run", run)
    monkeypatch.setattr(compare.time, "perf_counter", lambda: clock[0])
    found = compare.measure_script(Path("python"), Path("sac_continuous_action.py"), compare.Args())
    assert found["steps_per_second"] == pytest.approx(100)


def test_figures_of_other_settings_are_not_mixed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "measure", lambda command: {"device": {"platform": "cpu"}})
    out = tmp_path / "speed.json"
    args = compare.Args(algorithms=("sac",), num_seeds=(1,), evaluated=(), packed=False, rounds=2, out=out)
    out.write_text(json.dumps({"machine": compare.describe(args), "rounds": {"sac": [figures(90.0)] * 2}}))
    compare.main(args)
    assert "90 (90–90)" in capsys.readouterr().out
    for changes in ({"steps": 1000}, {"env_id": "Ant-v4"}, {"evaluated": (1,)}):
        with pytest.raises(UsageError, match="name another file"):
            compare.main(compare.Args(**{**vars(args), **changes}))


def test_a_round_compares_neighbours_and_turns_around(monkeypatch):
    """Ours and its peers are next to each other; every second round runs backwards."""
    called = []

    def measure(command):
        called.append(command)
        rates = {"updates_per_second": 1.0, "floor_updates_per_second": 1.0, "steps_per_second": 1.0}
        return rates if len(command) > 3 else {"device": {"platform": "cuda"}}

    monkeypatch.setattr(compare, "measure", measure)
    args = compare.Args(
        algorithms=("td3",), num_seeds=(1, 4), evaluated=(1,), rounds=2, peer_python=Path("p")
    )
    compare.main(args)
    first, second = called[4:11], called[11:]
    assert second == first[::-1] and "sbx" in first[1] and "stable_baselines3" in first[2]
    assert "TD3" in first[1] and "td3" in first[0]


def test_programs_of_an_algorithm(monkeypatch):
    """Peers are named where they exist; an update alone is timed if it learns from batches."""
    monkeypatch.setattr(compare, "cpu_count", lambda: 2)
    args = compare.Args(num_seeds=(1,), evaluated=(), peer_python=Path("p"))
    assert args.algorithms == tuple(algorithms()) and compare.RIVALS.keys() <= algorithms().keys()
    for name, algorithm in algorithms().items():
        chosen = compare.programs(args, name, on_cpu=True)
        others = compare.RIVALS[name][1] if name in compare.RIVALS else ()
        if not others or name == "crossq":
            others = "our SAC, 1 seed", *others
        alone = {"parts, 1"} if learns_from_batches(algorithm) else set()
        assert chosen.keys() == {"1 seed", "packed, 2 processes", *others} | alone
    with pytest.raises(UsageError, match="unknown algorithm 'ppo2'; there are a2c"):
        compare.main(compare.Args(algorithms=("ppo2",)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(warm=2500), "warm must be a multiple of 1,000, at least 2,000; got 2500"),
        (dict(steps=0), "steps must be a multiple of 1,000; got 0"),
        (dict(rounds=0), "rounds must be at least 1; got 0"),
        (dict(peer_script=(Path("sac.py"),)), "peer_script needs --peer-python"),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(UsageError, match=words):
        compare.main(compare.Args(**changes))


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "by_hand"), [(ddpg, 686_336), (td3, 788_608), (sac, 1_102_080)])
def test_operations_of_an_update(algorithm, by_hand):
    """Multiply-adds of all products for a row of Hopper's batch, as docs/develop/speed.md counts them."""
    counted = ours.gigaflop(algorithm, algorithm.Args(), SeedEnvs("Hopper-v4", [1]))
    assert counted == pytest.approx(2 * 256 * by_hand / 1e9, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", algorithms())
def test_an_update_alone(name):
    """Its programs take turns as the update's number says, and every turn learns; rollouts are refused."""
    algorithm = algorithms()[name]
    kinds = algorithm.Args.action_spaces
    envs = SeedEnvs(EnvChoice("Pendulum-v1" if "Box" in kinds else "CartPole-v1", kinds), [1, 2])
    if not learns_from_batches(algorithm):
        with pytest.raises(UsageError, match=f"{name} has no update of a batch"):
            BatchUpdate(algorithm, algorithm.Args(), envs)
        return
    args = algorithm.Args(batch_size=4, hidden_dims=(8,))
    update = BatchUpdate(algorithm, args, envs)
    assert update.turns.total() == math.lcm(*update.frequencies)
    for turn in update.turns:
        state, policy = (jax.tree.map(np.array, x) for x in (update.state, algorithm.policy(update.state)))
        update(turn)
        assert changed(state, update.state)
        moves = turn % getattr(args, "policy_frequency", 1) == 0
        assert changed(policy, algorithm.policy(update.state)) == moves
