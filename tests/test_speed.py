"""What benchmarks/speed.py makes of its measurements."""

import json
import subprocess
from pathlib import Path

import pytest
import speed


def figures(rate, bare=1.0, floor=1.0):
    parts = {"updates_per_second": bare, "floor_updates_per_second": floor}
    return {"run, 1 seeds": {"steps_per_second": rate}, "parts, 1 seeds": parts}


def test_ratios_are_taken_within_a_round():
    """The machine halves its speed in the second round, which no ratio may see."""
    rounds = [
        figures(90.0, bare=100.0, floor=125.0) | {"SBX": {"steps_per_second": 60.0}},
        figures(45.0, bare=50.0, floor=62.5) | {"SBX": {"steps_per_second": 30.0}},
    ]
    text = speed.table(rounds)
    assert "| SBX | 45 (30–60) | 1.50 × |" in text
    assert "| bare update / its floor | 0.80 (0.80–0.80) |" in text
    assert "| run / bare update | 0.90 (0.90–0.90) |" in text


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


def test_figures_of_other_settings_are_not_mixed(tmp_path, capsys):
    out = tmp_path / "speed.json"
    args = speed.Args(num_seeds=(1,), evaluation=False, packed=False, rounds=2, out=out)
    machine = json.loads(json.dumps(speed.describe(args)))
    out.write_text(json.dumps({"machine": machine, "rounds": {"sac": [figures(90.0)] * 2}}))
    speed.main(args)
    assert "90 (90–90)" in capsys.readouterr().out
    for changes in ({"steps": 1000}, {"env_id": "Ant-v4"}, {"evaluation": True}):
        with pytest.raises(SystemExit) as stop:
            speed.main(speed.Args(**{**vars(args), **changes}))
        assert stop.value.code == 2 and "name another file" in capsys.readouterr().err
