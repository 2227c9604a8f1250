"""What benchmarks/speed.py makes of its measurements."""

import json
import subprocess
from pathlib import Path

import pytest
import speed
import speed_ours

from cleanrl_maxent import ddpg, sac, td3
from cleanrl_maxent.common.envs import SeedEnvs


def figures(rate, bare=1.0, floor=1.0):
    parts = {"updates_per_second": bare, "floor_updates_per_second": floor}
    return {"1 seed": {"steps_per_second": rate}, "parts, 1": parts}


def test_ratios_are_taken_within_a_round():
    """The machine halves its speed in the second round, which no ratio may see."""
    rounds = [
        figures(90.0, bare=100.0, floor=125.0) | {"SBX": {"steps_per_second": 60.0}},
        figures(45.0, bare=50.0, floor=62.5) | {"SBX": {"steps_per_second": 30.0}},
    ]
    text = speed.table(rounds)
    assert "| SBX | 45 (30–60) | 1.50 (1.50–1.50) |" in text
    assert "| bare update ÷ its floor | 0.80 (0.80–0.80) |" in text
    assert "| whole run ÷ bare update | 0.90 (0.90–0.90) |" in text


def test_the_startup_of_a_script_is_not_its_speed(monkeypatch):
    """A script that starts for 7 s and then takes 100 steps a second, on a clock of its own."""
    clock = [0.0]

    def run(command, **options):
        flags = dict(flag.split("=") for flag in command[2:])
        clock[0] += 7 + int(flags["--total-timesteps"]) / 100
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(speed.subprocess, "run", run)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    found = speed.measure_script(Path("python"), Path("sac_continuous_action.py"), speed.Args())
    assert found["steps_per_second"] == pytest.approx(100)


def test_figures_of_other_settings_are_not_mixed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda command: {"device": {"platform": "cpu"}})
    out = tmp_path / "speed.json"
    args = speed.Args(algorithms=("sac",), num_seeds=(1,), evaluated=(), packed=False, rounds=2, out=out)
    out.write_text(json.dumps({"machine": speed.describe(args), "rounds": {"sac": [figures(90.0)] * 2}}))
    speed.main(args)
    assert "90 (90–90)" in capsys.readouterr().out
    for changes in ({"steps": 1000}, {"env_id": "Ant-v4"}, {"evaluated": (1,)}):
        with pytest.raises(SystemExit) as stop:
            speed.main(speed.Args(**{**vars(args), **changes}))
        assert stop.value.code == 2 and "name another file" in capsys.readouterr().err


def test_a_round_compares_neighbours_and_turns_around(monkeypatch):
    """Ours and its peers are next to each other; every second round runs backwards."""
    called = []

    def measure(command):
        called.append(command)
        rates = {"updates_per_second": 1.0, "floor_updates_per_second": 1.0, "steps_per_second": 1.0}
        return rates if len(command) > 3 else {"device": {"platform": "cuda"}}

    monkeypatch.setattr(speed, "measure", measure)
    args = speed.Args(algorithms=("td3",), num_seeds=(1, 4), evaluated=(1,), rounds=2, peer_python=Path("p"))
    speed.main(args)
    first, second = called[3:10], called[10:]
    assert second == first[::-1] and "sbx" in first[1] and "stable_baselines3" in first[2]
    assert "TD3" in first[1] and "td3" in first[0]


@pytest.mark.parametrize(("algorithm", "by_hand"), [(ddpg, 686_336), (td3, 788_608), (sac, 1_102_080)])
def test_operations_of_an_update(algorithm, by_hand):
    """Multiply-adds of all products for a row of Hopper's batch, as docs/speed.md counts them by hand."""
    given = speed_ours.Parts(algorithm=algorithm.__name__.rpartition(".")[2])
    counted = speed_ours.gigaflop(algorithm, given, SeedEnvs("Hopper-v4", [1]))
    assert counted == pytest.approx(2 * 256 * by_hand / 1e9, rel=0.03)
