"""docs/guide/cluster.md: what it gives other engines is well formed, and says what the programs do."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import sweep
from benchmarks.commands import ROOT
from benchmarks.faults import finished_records, write_suite
from cleanrl_maxent.common.errors import STOPPED

PAGE = (ROOT / "docs" / "guide" / "cluster.md").read_text()
KUBERNETES, SKYPILOT = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
LINES = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()
ARRAY = re.search(r"```bash\n(sbatch --array.*?)```", PAGE, re.DOTALL)[1].replace("\\\n", "")
CELLS = 300  # of mujoco-1m, one seed each


def cell_of(command, **variables):
    """The number of the cell that a command runs, which has to `exec`, so that signals reach the run."""
    for name, value in variables.items():
        command = command.replace(f"${name}", value)
    words = shlex.split(command)
    assert words[0] == "exec" and words[1].endswith("python") and words[2] == "benchmarks/sweep.py"
    args = sweep.tyro.cli(sweep.Args, args=words[3:])
    assert args.suite == "mujoco-1m" and args.executor == "local"
    return args.cell


def test_the_suite_has_so_many_cells():
    grids = sweep.read_suite("mujoco-1m")[1]
    assert len(list(sweep.expand(grids, ROOT, "auto", 1))) == CELLS


def test_slurm_array():
    words = shlex.split(ARRAY)
    assert f"--array=0-{CELLS - 1}" in words and "--signal=B:USR1@120" in words
    assert "--open-mode=append" in words
    (wrapped,) = (word.removeprefix("--wrap=") for word in words if word.startswith("--wrap="))
    assert cell_of(wrapped, SLURM_ARRAY_TASK_ID="7") == 7


def test_kubernetes_job():
    spec = KUBERNETES["spec"]
    assert KUBERNETES["kind"] == "Job" and spec["completionMode"] == "Indexed"
    assert spec["completions"] == CELLS and spec["backoffLimitPerIndex"] >= 1
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # a failure policy needs it
    stopped, disrupted = spec["podFailurePolicy"]["rules"]
    codes = {"containerName": container["name"], "operator": "In", "values": [STOPPED]}
    assert stopped == {"action": "Ignore", "onExitCodes": codes}
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    shell, flag, command = container["command"]
    assert (shell, flag) == ("sh", "-c") and cell_of(command, JOB_COMPLETION_INDEX="7") == 7
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert all(type(variable["value"]) is str for variable in container["env"])


def test_skypilot_task():
    assert SKYPILOT["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED]
    assert list(SKYPILOT["envs"]) == ["CELL"] and cell_of(SKYPILOT["run"], CELL="7") == 7
    assert f"for i in $(seq 0 {CELLS - 1}); do sky jobs launch " in PAGE and "--env CELL=$i " in PAGE


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("parallel"), reason="GNU parallel is not installed")
def test_gnu_parallel(tmp_path):
    """The first line as it is, with a small suite; given again, it has nothing to do."""
    flags = dict(total_timesteps=400, learning_starts=300, buffer_size=500, eval_episodes=0)
    grid = dict(algorithms=["ddpg"], env_ids=["Pendulum-v1"], seeds=2, flags=flags)
    suite = write_suite(tmp_path / "suite.toml", grid)
    line = (
        LINES[0]
        .replace("benchmarks/sweep.py", str(ROOT / "benchmarks" / "sweep.py"))
        .replace(" cpu ", f" {suite} ")
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` is this one
    shell = dict(cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    for jobs in (2, 0):
        done = subprocess.run(["sh", "-c", line], **shell)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done: ") == jobs
    assert len(finished_records(tmp_path / "runs")) == 2
    assert LINES[1].startswith(LINES[0])
