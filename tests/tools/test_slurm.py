"""benchmarks/executors/slurm.py with programs that play Slurm: no cell is lost, or submitted twice."""

import os
import re
import shutil
import signal
import subprocess

import pytest
import tyro

from benchmarks import sweep
from benchmarks.executors import slurm
from cleanrl_maxent.common.errors import STOPPED, Stopped, UsageError
from cleanrl_maxent.common.ranges import READERS
from cleanrl_maxent.common.usage import join_values
from tests.support.fake_slurm import FakeSlurm
from tests.support.suites import make_cells, write_checkpoint, write_config, write_result

DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
FULL = (
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: "
    "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)\n"
)
CANCELLED = "cancelled {} that did not run, and told {} that run to save and end\n"
SUITE = """
[[grid]]
algorithms = ["sac"]
env_ids = ["Pendulum-v1"]
seeds = 2
flags = { total_timesteps = 700, learning_starts = 300 }
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.path}:/usr/bin:/bin")
    return fake


def new_sweep(cells, most=50, retries=2):
    """As a process that has just started: it knows nothing of those before it."""
    executor = slurm.SlurmExecutor(cells, most, "", seconds=120, pause=0)
    return sweep.Sweep(cells, executor, retries)


def test_the_script(tmp_path):
    (cell,) = make_cells(tmp_path / "100% my runs", ["A-v0__it's__1"], "auto")
    script = slurm.job_script(cell, 90, ["--time=60"])
    name = slurm.job_name(cell)
    assert re.fullmatch(r"A-v0__it_s__1-[0-9a-f]{12}", name)
    assert f"#SBATCH --job-name={name}\n#SBATCH --dependency=singleton\n" in script
    assert f'#SBATCH --output="{tmp_path}/100%% my runs/A-v0__it\'s__1.log"\n' in script
    assert "#SBATCH --open-mode=append\n#SBATCH --requeue\n" in script
    assert "#SBATCH --cpus-per-task=1\n#SBATCH --signal=B:USR1@90\nexport NPROC=" in script
    for variables, threads in (
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "4"}, "3"),
        ({"SLURM_CPUS_ON_NODE": "4"}, "4"),
    ):
        shown = subprocess.run(
            ["sh"], input=script.replace("exec ", "printf '%s\\n' $NPROC "), capture_output=True, text=True,
            env={**variables, "PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert shown.stdout.splitlines() == [threads, *cell.command()] and "auto" in cell.command()
    assert "cpus-per-task" not in slurm.job_script(cell, 90, ["--cpus-per-gpu=8"])


def test_a_run_keeps_its_number_of_threads(tmp_path):
    (cell,) = make_cells(tmp_path, ["begun"])
    write_config(cell, cpu_threads=2)
    assert "export NPROC=2\n" in slurm.job_script(cell, 90, [])


def test_a_name_is_that_of_a_folder_however_it_is_reached(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / "runs", tmp_path / "link", tmp_path / "runs" / ".." / "runs", sweep.Path("runs")]
    names = {slurm.job_name(make_cells(folder, ["cell"])[0]) for folder in folders}
    assert len(names) == 1
    assert slurm.job_name(make_cells(tmp_path / "other", ["cell"])[0]) not in names


@pytest.mark.parametrize(
    "state, code, status",
    [
        ("COMPLETED", "0:0", 0),
        ("FAILED", "75:0", STOPPED),
        ("FAILED", "2:0", 2),
        ("FAILED", "0:9", -9),
        ("FAILED", "137:0", -9),
        ("TIMEOUT", "0:0", slurm.LOST),
        ("TIMEOUT", "75:0", STOPPED),
        ("NODE_FAIL", "0:0", slurm.LOST),
        ("PREEMPTED", "0:15", slurm.LOST),
        ("OUT_OF_MEMORY", "0:125", 125),
        ("CANCELLED", "0:15", slurm.CANCELLED),
        ("FAILED", "0:53", slurm.NO_LOG),
        ("PENDING", "0:0", None),
        ("REQUEUED", "0:0", None),
    ],
)
def test_how_a_job_ended(cluster, state, code, status):
    (cluster.folder / "jobs" / "1").write_text(f"name {state} {code}\n")
    assert slurm.exit_status("1") == (status, "")
    cluster.say("forgetful")
    assert slurm.exit_status("1") == (slurm.LOST, "")
    cluster.say("scontrol_down", DOWN)
    assert slurm.exit_status("1") == (None, DOWN.strip())


def test_what_becomes_of_a_cell(tmp_path, cluster):
    """Every job is submitted again until its folder has a result, or it was killed without a new checkpoint,
    or failed, too often."""
    cells = make_cells(tmp_path / "runs", ["good", "stopped", "preempted", "killed", "broken", "cancelled"])
    good, stopped, preempted, killed, broken, cancelled = cells
    sweeper, ends = new_sweep(cells, retries=1), {}
    ends[good] = [("COMPLETED", "0:0")]
    ends[stopped] = [("FAILED", "75:0")] * 25 + [("COMPLETED", "0:0")]
    ends[preempted] = [("PREEMPTED", "0:15")] * 25 + [("COMPLETED", "0:0")]
    ends[killed] = [("NODE_FAIL", "0:0"), ("FAILED", "0:9"), ("COMPLETED", "0:0")]
    ends[broken] = [("FAILED", "2:0")] * 9
    ends[cancelled] = [("CANCELLED", "0:0")]
    by_name = {slurm.job_name(cell): cell for cell in cells}
    lines = []
    while not sweeper.over:
        lines += sweeper.step()
        for number, job in cluster.jobs().items():
            if job.state == "PENDING":
                cell = by_name[job.name]
                end = ends[cell].pop(0)
                if cell is not killed:
                    write_checkpoint(cell, number)
                if end[0] == "COMPLETED":
                    write_result(cell)
                cluster.set(number, *end)
    assert sweeper.done == [good, killed, stopped, preempted] and sweeper.failed == [cancelled, broken]
    submissions = [by_name[job.name] for job in cluster.jobs().values()]
    assert [submissions.count(cell) for cell in cells] == [1, 26, 26, 3, 2, 1]
    assert sum(line.startswith("stopped ") for line in lines) == 25
    assert sweeper.kills == {killed: 2} and sweeper.failures[broken] == 2


def test_a_run_that_is_stopped_before_it_gets_anywhere_is_given_up(tmp_path, cluster):
    """As with a time limit that is shorter than what a run needs to start."""
    (cell,) = make_cells(tmp_path / "runs", ["short"])
    sweeper = new_sweep([cell])
    while not sweeper.over:
        sweeper.step()
        for number, job in cluster.jobs().items():
            if job.state == "PENDING":
                write_checkpoint(cell, 100)
                cluster.set(number, "FAILED", "75:0")
    assert sweeper.failed == [cell] and len(cluster.jobs()) == sweep.MAX_KILLS + 2


def test_a_killed_sweep_finds_its_jobs(tmp_path, cluster):
    cells = make_cells(tmp_path / "runs", ["a", "b", "c"])
    first = new_sweep(cells, most=2)
    assert len(first.step()) == len(cluster.jobs()) == 2
    second = new_sweep(cells, most=2)
    lines = second.step()
    assert [line.partition(" ")[0] for line in lines] == ["runs", "runs"] and len(cluster.jobs()) == 2
    assert second.step() == []
    cluster.set(1, "COMPLETED")
    write_result(cells[0])
    cluster.set(2, "NODE_FAIL")
    words = [line.split()[0] for line in second.step()]
    assert words == ["finished", "killed", "queued", "queued"] and len(cluster.jobs()) == 4
    assert second.done == [cells[0]]
    third = new_sweep(cells, most=2)
    third.step()
    cluster.set(3, "COMPLETED")
    write_result(cells[2])
    cluster.set(4, "CANCELLED")
    for sweeper in (second, third):
        sweeper.step()
        assert sweeper.over and sweeper.failed == [cells[1]]  # what was cancelled is not submitted again


def test_a_cell_that_was_given_up_is_not_settled_again(tmp_path, cluster):
    """Another sweep submits it once more, and it fails once more."""
    broken, other = make_cells(tmp_path / "runs", ["broken", "other"])
    sweeper = new_sweep([broken, other], retries=0)
    sweeper.step()
    cluster.set(1, "FAILED", "2:0")
    assert sweeper.step() == [f"gave up  {broken.folder}, status 2"]
    new_sweep([broken, other], retries=0).step()
    sweeper.step()
    cluster.set(3, "FAILED", "2:0")
    assert sweeper.step() == [] and sweeper.failed == [broken] and not sweeper.over


def test_while_slurm_is_down_nothing_is_lost_or_submitted(tmp_path, cluster, capsys):
    cells = make_cells(tmp_path / "runs", ["a", "b", "c"])
    cluster.say("down", DOWN)
    sweeper = new_sweep(cells, most=2)
    assert sweeper.step() == [] and not cluster.jobs()
    cluster.unsay("down")
    assert len(sweeper.step()) == 2
    cluster.say("down", DOWN)
    write_result(cells[0])
    cluster.set(1, "COMPLETED")
    assert [sweeper.step() for _ in range(3)] == [[], [], []]
    assert len(sweeper.executor.running) == len(cluster.jobs()) == 2
    cluster.unsay("down")
    finished, queued = sweeper.step()
    assert finished.startswith("finished ") and queued == f"queued   {cells[2].folder}"
    assert len(cluster.jobs()) == 3 and len(sweeper.executor.running) == 2
    # said once each time
    assert capsys.readouterr().err == 2 * f"warning: {DOWN.strip()}; waiting, and trying again\n"


def test_a_sweep_that_cannot_see_the_queue_submits_nothing(tmp_path, cluster):
    """Even if sbatch answers: its jobs may be there already."""
    cells = make_cells(tmp_path / "runs", ["a", "b"])
    new_sweep(cells).step()
    cluster.say("squeue_down", DOWN)
    sweeper = new_sweep(cells)
    assert sweeper.step() == sweeper.step() == [] and len(cluster.jobs()) == 2
    cluster.unsay("squeue_down")
    assert [line.split()[0] for line in sweeper.step()] == ["runs", "runs"]


def test_a_job_that_was_taken_without_an_answer_is_not_submitted_again(tmp_path, cluster):
    cells = make_cells(tmp_path / "runs", ["a", "b"])
    sweeper = new_sweep(cells)
    cluster.say("mute")
    assert sweeper.step() == [] and len(cluster.jobs()) == 1
    cluster.unsay("mute")
    assert sweeper.step() == [f"runs     {cells[0].folder} already", f"queued   {cells[1].folder}"]
    assert [job.name for job in cluster.jobs().values()] == [slurm.job_name(cell) for cell in cells]


def test_a_full_queue_is_waited_for_and_a_refusal_ends_the_sweep(tmp_path, cluster, capsys):
    (cell,) = make_cells(tmp_path / "runs", ["a"])
    sweeper = new_sweep([cell])
    cluster.say("sbatch_down", FULL)
    assert sweeper.step() == sweeper.step() == [] and sweeper.waiting == [cell]
    cluster.say(
        "sbatch_down", "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    assert capsys.readouterr().err.count("waiting, and trying again") == 1
    with pytest.raises(UsageError, match="^Batch job submission failed: Invalid partition name specified "):
        sweeper.step()
    assert not capsys.readouterr().err
    cluster.unsay("sbatch_down")
    assert sweeper.step() == [f"queued   {cell.folder}"]


def test_a_refusal_after_the_first_job_is_waited_for(tmp_path, cluster, capsys):
    """As when Slurm's credentials expire, or it is upgraded, in the night."""
    first, second = make_cells(tmp_path / "runs", ["a", "b"])
    sweeper = new_sweep([first, second], most=1)
    assert sweeper.step() == [f"queued   {first.folder}"]
    write_result(first)
    cluster.set(1, "COMPLETED")
    cluster.say("sbatch_down", "sbatch: error: Protocol authentication error\n")
    assert sweeper.step() == [f"finished {first.folder}"] and sweeper.step() == []
    assert capsys.readouterr().err.count("Protocol authentication error; waiting, and trying again") == 1
    cluster.unsay("sbatch_down")
    assert sweeper.step() == [f"queued   {second.folder}"]


def run_main(tmp_path, *words):
    """`sweep.main` on a suite of two cells, with Slurm."""
    (tmp_path / "suite.toml").write_text(SUITE)
    command = [str(tmp_path / "suite.toml"), "--out-dir", str(tmp_path / "runs"), "--executor", "slurm"]
    return sweep.main(sweep.tyro.cli(sweep.Args, args=[*command, *words]))


def test_dry_run_prints_a_script_and_submits_nothing(tmp_path, cluster, capsys):
    assert run_main(tmp_path, "--dry-run", "--sbatch=--partition=gpu", "--save-seconds", "60") == 0
    out = capsys.readouterr().out
    assert out.startswith("# read by: sbatch --partition=gpu\n#!/bin/sh\n")
    assert "@60\n" in out and out.count("exec ") == 1
    assert f"--device auto --run-dir {tmp_path}/runs/suite/Pendulum-v1__sac__1\n" in out
    assert "\n2 runs to do, 2 at a time: about " in out
    assert not cluster.jobs() and not (tmp_path / "runs").exists()


def test_arguments_of_the_user_reach_sbatch(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(sweep.signals, "received", [signal.SIGTERM])
    words = "--partition=gpu --gres=gpu:1 --comment='two words' -A me --export=ALL --wait-all-nodes=1"
    assert run_main(tmp_path, f"--sbatch={words}", "--workers", "1") == STOPPED
    given = ["--parsable", "--partition=gpu", "--gres=gpu:1", "--comment=two words", "-A", "me"]
    given += ["--export=ALL", "--wait-all-nodes=1"]
    assert cluster.arguments(1) == given and len(cluster.jobs()) == 1


def test_variables_of_the_user_hide_no_job_and_change_no_script(tmp_path, cluster, monkeypatch):
    for name in (
        "SQUEUE_STATES",
        "SBATCH_SIGNAL",
        "SBATCH_ARRAY_INX",
        "SBATCH_PARTITION",
        "SBATCH_WAIT_ALL_NODES",
    ):
        monkeypatch.setenv(name, "0")
    new_sweep(make_cells(tmp_path / "runs", ["a"])).step()
    seen = set((cluster.folder / "variables").read_text().split())
    assert {name for name in seen if name.startswith(("SQUEUE", "SBATCH"))} == {
        "SBATCH_PARTITION",
        "SBATCH_WAIT_ALL_NODES",
    }


def test_a_job_that_squeue_does_not_show_is_not_submitted_again(tmp_path, cluster):
    """As in a state that it leaves out."""
    (cell,) = make_cells(tmp_path / "runs", ["a"])
    sweeper = new_sweep([cell])
    sweeper.step()
    cluster.set(1, "STAGE_OUT")
    assert sweeper.step() == sweeper.step() == [] and sweeper.executor.running == {cell}
    cluster.set(1, "NODE_FAIL")
    assert [line.split()[0] for line in sweeper.step()] == ["killed", "queued"]


def test_a_result_may_appear_after_the_end_of_its_job(tmp_path, cluster):
    cells = make_cells(tmp_path / "runs", ["late", "never"])
    sweeper = new_sweep(cells, retries=0)
    sweeper.step()
    for number in (1, 2):
        cluster.set(number, "COMPLETED")
    assert sweeper.step() == [] and not sweeper.over
    write_result(cells[0])
    sweeper.step()
    assert sweeper.done == cells[:1] and sweeper.failed == cells[1:] and len(cluster.jobs()) == 2


def test_nodes_that_do_not_see_the_folder(tmp_path, cluster, capsys):
    """Slurm's 0:53 is a failure, of which the log that could not be opened says nothing."""
    (cell,) = make_cells(tmp_path / "runs", ["a"])
    sweeper = new_sweep([cell], retries=1)
    for _ in range(3):
        sweeper.step()
        cluster.set(len(cluster.jobs()), "FAILED", "0:53")
    assert sweeper.over and len(cluster.jobs()) == 2
    said = f"warning: Slurm could not open {cell.log()}: do its nodes see this folder?\n"
    assert capsys.readouterr().err == said


def test_scontrol_that_does_not_answer_is_asked_once_a_look(tmp_path, cluster, capsys):
    cells = make_cells(tmp_path / "runs", ["a", "b"])
    sweeper = new_sweep(cells)
    sweeper.step()
    for number, cell in ((1, cells[0]), (2, cells[1])):
        cluster.set(number, "COMPLETED")
        write_result(cell)
    cluster.say("scontrol_down", DOWN)
    assert sweeper.step() == sweeper.step() == [] and sweeper.executor.running == set(cells)
    assert capsys.readouterr().err == f"warning: {DOWN.strip()}; waiting, and trying again\n"
    cluster.unsay("scontrol_down")
    sweeper.step()
    assert sweeper.done == cells


def test_why_jobs_wait_is_said_once(tmp_path, cluster, capsys):
    sweeper = new_sweep(make_cells(tmp_path / "runs", ["a", "b"]))
    cluster.say("reason", "Priority")
    sweeper.step(), sweeper.step()
    assert not capsys.readouterr().err
    cluster.say("reason", "launch failed requeued held")
    sweeper.step(), sweeper.step()
    said = capsys.readouterr().err
    assert said == f"warning: {tmp_path}/runs/a waits in Slurm's queue: launch failed requeued held\n"


def test_after_a_signal_jobs_stay_in_the_queue(tmp_path, cluster, capsys):
    (tmp_path / "suite.toml").write_text(SUITE)
    cells = make_cells(tmp_path / "runs", ["a", "b"])
    sweeper, step = new_sweep(cells), sweep.Sweep.step

    def step_and_stop():
        os.kill(os.getpid(), signal.SIGTERM)
        return step(sweeper)

    sweeper.step = step_and_stop
    try:
        assert sweep.reconcile(sweeper) == STOPPED
    finally:
        sweep.signals.received.clear()
    stay = (
        "2 jobs in Slurm's queue, where they stay: the same command finds them, with --cancel it cancels them"
    )
    assert capsys.readouterr().out.splitlines()[-1] == stay
    assert [job.state for job in cluster.jobs().values()] == ["PENDING"] * 2


def test_cancel(tmp_path, cluster, capsys):
    """Waiting jobs go, those that run save first, sweeps that watch them end; the next sweep resumes."""
    cells = make_cells(tmp_path / "runs", ["a", "b", "c"])
    watching, late = new_sweep(cells, most=2), new_sweep(cells)
    watching.step()
    cluster.set(1, "RUNNING")
    slurm.cancel(cells)
    assert capsys.readouterr().out == CANCELLED.format("1 job", 1)
    assert [job[1:] for job in cluster.jobs().values()] == [("FAILED", "75:0"), ("CANCELLED", "0:0")]
    for sweeper in (watching, late):
        with pytest.raises(Stopped, match="cancelled by --cancel"):
            sweeper.step()
    with pytest.raises(Stopped):
        late.executor.start(cells[0])
    assert len(cluster.jobs()) == 2
    cluster.say("down", DOWN)
    with pytest.raises(UsageError, match="Unable to contact slurm controller .*; try again"):
        slurm.cancel(cells)


def test_cancel_ends_every_job_of_a_cell_in_every_state(tmp_path, cluster, capsys):
    """Two sweeps have submitted cell a; the job that runs is listed after the one that waits."""
    cells = make_cells(tmp_path / "runs", ["a", "b", "c", "d"])
    new_sweep(cells).step()
    (cluster.folder / "jobs" / "5").write_text(f"{slurm.job_name(cells[0])} RUNNING 0:0\n")
    for number, state in ((2, "CONFIGURING"), (3, "SUSPENDED"), (4, "COMPLETING")):
        cluster.set(number, state)
    slurm.cancel(cells)
    assert capsys.readouterr().out == CANCELLED.format("3 jobs", 1)
    states = [job.state for job in cluster.jobs().values()]
    assert states == ["CANCELLED"] * 4 + ["FAILED"]  # one that is completing may be queued again


def test_jobs_are_cancelled_though_their_folder_is_gone(tmp_path, cluster, capsys):
    cells = make_cells(tmp_path / "runs", ["a", "b"])
    new_sweep(cells).step()
    shutil.rmtree(tmp_path / "runs")
    slurm.cancel(cells)
    assert [job.state for job in cluster.jobs().values()] == ["CANCELLED"] * 2


def test_a_sweep_after_cancel_begins_anew(tmp_path, cluster, monkeypatch, capsys):
    with pytest.raises(UsageError, match="nothing to cancel: there is no .*/runs/suite, and no job"):
        run_main(tmp_path, "--cancel")
    (tmp_path / "runs" / "suite").mkdir(parents=True)
    with pytest.raises(
        UsageError, match="nothing to cancel: no job of these runs is queued; give .*--device"
    ):
        run_main(tmp_path, "--cancel")
    assert not list((tmp_path / "runs" / "suite").iterdir())
    monkeypatch.setattr(sweep.signals, "received", [signal.SIGTERM])
    assert run_main(tmp_path) == STOPPED and len(cluster.jobs()) == 2


@pytest.mark.parametrize(
    "words, message",
    [
        (["--sbatch=--array=0-3"], "--array=0-3 is reserved"),
        (["--sbatch=-p gpu -J mine"], "-J is reserved"),
        (["--sbatch=--dependency=after:1"], "--dependency=after:1 is reserved"),
        (["--sbatch=--signal=TERM@5"], "--signal=TERM@5 is reserved"),
        (["--sbatch=-D /tmp"], "-D is reserved"),
        (["--sbatch=--arr=0-3"], "--arr=0-3 is reserved"),
        (["--sbatch=-Q"], "-Q is reserved"),
        (["--sbatch=--error=x"], "--error=x is reserved"),
        (["--sbatch=gpu"], "--sbatch: gpu belongs to no option, such as -p gpu"),
        (["--sbatch=-p gpu long"], "--sbatch: long belongs to no option"),
        (["--sbatch=--partition=gpu long"], "--sbatch: long belongs to no option"),
        (["--sbatch=--comment='a"], "No closing quotation"),
        (["--list"], "--list is for other schedulers: leave --executor out"),
        (["--cell", "1"], "--cell is for other schedulers: leave --executor out"),
        (["--cancel", "--dry-run"], "give --cancel or --dry-run, not both"),
        (["--save-seconds", "0"], "save_seconds must be >= 1; got 0"),
        (["--poll", "0"], "poll must be > 0; got 0"),
        (["--workers", "-1"], "workers must be >= 0; got -1"),
        (["--executor", "local", "--cancel"], "--cancel is for Slurm: add --executor slurm"),
        (["--executor", "local", "--sbatch=-p gpu"], "--sbatch is for Slurm: add --executor slurm"),
    ],
)
def test_bad_arguments(tmp_path, cluster, words, message):
    with pytest.raises(UsageError, match=re.escape(message)) as problem:
        run_main(tmp_path, *words)
    assert "\n" not in str(problem.value) and not cluster.jobs()


@pytest.mark.parametrize(
    "words, sbatch",
    [
        (["--sbatch", "--partition=gpu --gres=gpu:1"], "--partition=gpu --gres=gpu:1"),
        (["--sbatch=--partition=gpu --gres=gpu:1"], "--partition=gpu --gres=gpu:1"),
        (["--sbatch", "--gres=gpu:1"], "--gres=gpu:1"),
    ],
)
def test_a_value_of_sbatch_may_begin_with_dashes(words, sbatch):
    args = tyro.cli(
        sweep.Args, args=join_values(["smoke", *words, "--poll", "2"], sweep.Args), registry=READERS
    )
    assert (args.sbatch, args.poll) == (sbatch, 2)


def test_what_follows_a_flag_without_a_text_is_a_flag():
    for words in (["--list", "--cell=3"], ["--list", "--nothing=3"]):
        assert join_values(words, sweep.Args) == words


def test_a_slurm_that_is_not_set_up_ends_the_sweep(tmp_path, cluster):
    """Its programs are there, but know of no cluster: waiting would not help."""
    cluster.say("down", "squeue: fatal: Could not establish a configuration source\n")
    with pytest.raises(UsageError, match="^Slurm does not work on this machine: squeue: fatal: Could not"):
        new_sweep(make_cells(tmp_path / "runs", ["a"])).step()


def test_a_machine_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for words in ((), ("--cancel",)):
        with pytest.raises(UsageError, match="^Slurm is not on this machine: there is no sbatch"):
            run_main(tmp_path, *words)
    assert not (tmp_path / "runs").exists()
