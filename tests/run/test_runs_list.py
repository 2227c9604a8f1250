"""The listing of runs, and the removal of what finished ones no longer need."""

import fcntl
import json
import os
import re
import subprocess
import sys

import pytest

from cleanrl_maxent import runs
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run.inventory import describe, find_runs


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def make_run(folder, result=None, checkpoints=(), records=(), **args):
    """A run's folder by hand: `records` holds the rows of each seed, `checkpoints` their steps."""
    args = dict(env_id="Hopper-v4", seed=1, num_seeds=1, total_timesteps=1000) | args
    write(folder / "config.json", {"algorithm": "sac", "args": args})
    write(folder / ".lock", "1\n")
    for steps in checkpoints:
        write(folder / "checkpoint" / f"checkpoint-{steps:010}.json", "")
        write(folder / "checkpoint" / f"state-{steps:010}.npz", "x" * 2_000_000)
    for index, rows in enumerate(records):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write(folder / f"seed-{args['seed'] + index}" / "metrics.jsonl", lines)
    if result is not None:
        write(folder / "result.json", {"evaluations": result, "total_timesteps": args["total_timesteps"]})
    return folder


def evaluation(steps, value, mode="eval"):
    return {"global_step": steps, f"{mode}/return_mean": value}


def finished(folder, value=5.0, **args):
    return make_run(folder, {"1": evaluation(1000, value)}, [500, 1000], [[evaluation(1000, value)]], **args)


def listed(capsys, folder, **flags):
    """Exit status of the program, the lines that it prints, and those on stderr."""
    status = runs.main(runs.Args(folder, **flags))
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def test_a_trained_run(run, capsys):
    folder, result = run
    status, (head, line, last), errors = listed(capsys, folder.parent)
    assert status == 0 and not errors
    assert head.split() == "name algorithm environment seeds steps of return state size".split()
    name, algorithm, environment, seeds, steps, total, mean, state, *size = line.split()
    assert (name, algorithm, environment, seeds) == ("two", "sac", "Pendulum-v1", "3-4")
    assert (steps, total, state) == ("570", "570", "finished")
    returns = [row["eval/return_mean"] for row in result["evaluations"].values()]
    assert float(mean) == pytest.approx(sum(returns) / 2, abs=0.06)
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert " ".join(size) == runs.decimal(on_disk) and last.startswith("1 finished; ")


def test_a_stopped_run_stands_at_its_newest_checkpoint(tmp_path):
    """Its last evaluation is the mean over its seeds; a row that is cut short, or garbage, is left out."""
    rows = [evaluation(200, 1.0), evaluation(400, 3.0), {"global_step": 700, "losses/critic_loss": 1}]
    more = [*rows[:1], evaluation(400, 6.0)]
    row = describe(make_run(tmp_path / "a", checkpoints=[300, 600], records=[rows, more], num_seeds=2))
    assert (row.state, row.steps, row.total, row.last_return) == ("stopped", 600, 1000, 4.5)
    record = tmp_path / "a" / "seed-2" / "metrics.jsonl"
    record.write_text(record.read_text() + '{"eval\0\n{"global_step": 500, "eval/return_mean": 99')
    assert describe(tmp_path / "a").last_return == 4.5


def test_before_the_first_evaluation_and_checkpoint(tmp_path):
    row = describe(make_run(tmp_path / "a", records=[[{"global_step": 50, "charts/episodic_return": 1.0}]]))
    assert (row.state, row.steps, row.last_return) == ("stopped", 0, None)
    assert describe(make_run(tmp_path / "b", result={"1": {}})).last_return is None


def test_a_running_run_stands_where_its_record_ends(tmp_path):
    """To ask does not keep the lock."""
    folder = make_run(
        tmp_path / "a", checkpoints=[300], records=[[evaluation(200, 1.0), {"global_step": 450}]]
    )
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        row = describe(folder)
    assert (row.state, row.steps, row.last_return) == ("running", 450, 1.0)
    assert describe(folder).state == "stopped"
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_deterministic_policy_counts_if_there_is_one(tmp_path):
    sampled = evaluation(1000, 7.0, "eval_stochastic")
    assert describe(make_run(tmp_path / "sql", {"1": sampled})).last_return == 7.0
    assert describe(make_run(tmp_path / "sac", {"1": sampled | evaluation(1000, 8.0)})).last_return == 8.0


def test_only_the_end_of_a_record_is_read(tmp_path):
    """A gigabyte, almost all of which takes no place on the disk; the evaluation is 200 kB from the end."""
    folder = make_run(tmp_path / "a", records=[[]])
    rows = [evaluation(400, 3.0)] + [{"global_step": 400 + i, "losses/x": 0.0} for i in range(5000)]
    with open(folder / "seed-1" / "metrics.jsonl", "r+b") as file:
        file.seek(10**9)
        file.write(b"\n" + b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        assert file.tell() - 10**9 > 2**16 + 100_000
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        row = describe(folder)
    assert (row.steps, row.last_return, row.size > 10**9) == (5399, 3.0, True)


DEEP = "[" * 100_000
ARGS = dict(env_id="Hopper-v4", seed=1, num_seeds=1, total_timesteps=1000)
FOREIGN = {
    "no JSON": "}",
    "not UTF-8": "\udcff",
    "a list": "[]",
    "too deep": DEEP,
    "another program's": {"model_type": "bert"},
    "no arguments": {"algorithm": "sac", "args": None},
    "a list of arguments": {"algorithm": "sac", "args": ["seed"]},
    "words for numbers": {"algorithm": "sac", "args": ARGS | {"seed": "one"}},
    "infinite": {"algorithm": "sac", "args": ARGS | {"num_seeds": float("inf")}},
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_of_something_else_is_one_line(content, tmp_path, capsys):
    """The runs beside it are listed."""
    finished(tmp_path / "a")
    (tmp_path / "b").mkdir()
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "b" / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    status, lines, errors = listed(capsys, tmp_path)
    assert status == 0 and not errors and lines[1].startswith("a ")
    assert len(lines) == 4 and lines[-1].startswith("not a run: b: ")


@pytest.mark.parametrize(
    "result", ["", "{}", '{"evaluations": 1}', '{"evaluations": {"1": {"global_step": []}}}']
)
def test_a_damaged_result_is_one_line(result, tmp_path, capsys):
    """It does not count as finished, so that nothing of it is removed."""
    folder = finished(tmp_path / "a")
    (folder / "result.json").write_text(result)
    status, lines, _ = listed(capsys, tmp_path, prune=True, yes=True)
    assert status == 0 and lines[0].startswith("not a run: a: ") and (folder / "checkpoint").is_dir()


def test_a_damaged_folder_has_no_config(tmp_path, capsys):
    (finished(tmp_path / "a") / "config.json").unlink()
    assert listed(capsys, tmp_path)[1] == ["not a run: a: config.json: No such file or directory"]


def test_names_cannot_move_the_cursor(tmp_path, capsys):
    finished(tmp_path / "a\x1b[2J\nb", env_id="\x1b[31mred")
    finished(tmp_path / os.fsdecode(b"\xff"))
    _, lines, _ = listed(capsys, tmp_path)
    assert len(lines) == 4 and lines[1].startswith("a?[2J?b ") and " ?[31mred " in lines[1]
    assert lines[2].startswith("? ")


def test_runs_are_found_in_folders_of_folders_and_once(tmp_path):
    """Through links too, but not inside of runs."""
    inner = finished(tmp_path / "runs" / "suite" / "a")
    make_run(inner / "wandb" / "x")
    finished(tmp_path / "elsewhere" / "b")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "suite" / "loop").symlink_to(tmp_path / "runs")
    names = [str(folder.relative_to(tmp_path / "runs")) for folder in find_runs(tmp_path / "runs")]
    assert names == ["linked/b", "suite/a"]
    assert list(find_runs(inner)) == [inner]


def test_a_stray_mark_hides_no_runs(tmp_path):
    (tmp_path / ".lock").touch()
    assert list(find_runs(tmp_path)) == [tmp_path]
    run = finished(tmp_path / "suite" / "a")
    assert list(find_runs(tmp_path)) == [tmp_path, run]


def test_a_pipe_gets_whole_plain_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    name = "long" * 40
    finished(tmp_path / name, value=-1234.56, env_id="cleanrl_maxent/MultiGoal-v0", total_timesteps=1_000_000)
    finished(tmp_path / "short", num_seeds=10)
    _, lines, _ = listed(capsys, tmp_path)
    assert all(character.isascii() and character.isprintable() for line in lines for character in line)
    assert lines[1].split() == [
        *(
            name,
            "sac",
            "cleanrl_maxent/MultiGoal-v0",
            "1",
            "1000",
            "1000000",
            "-1234.6",
            "finished",
            "4.0",
            "MB",
        )
    ]
    starts = [[match.start() for match in re.finditer(r"(?<=  )\w", line)] for line in lines[:3]]
    assert len({line[0] for line in starts}) == 1 and lines[2].split()[3] == "1-10"


@pytest.mark.parametrize("width", [60, 80])
def test_a_terminal_gets_a_table_that_fits(width, tmp_path, capsys, monkeypatch):
    """Names and numbers are whole, on as many lines as they need."""
    name = "HalfCheetah-v4__sac_with_a_longer_name__12__1795242568"
    finished(tmp_path / "suite" / name, value=-12345.67, total_timesteps=1_000_000, seed=12, num_seeds=10)
    make_run(tmp_path / "b", checkpoints=[600], env_id="InvertedDoublePendulum-v4")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, lines, _ = listed(capsys, tmp_path)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]
    assert all(len(line) <= width for line in lines) and "…" not in "".join(lines)
    edge = next(line for line in lines if "of 1,000,000" in line).index("of 1,000,000")
    assert name in re.sub(r"\s+", "", "".join(line[:edge] for line in lines))
    for words in ("-12,345.7", "finished", "4.0 MB", "stopped", "600", "of 1,000 ", "2.0 MB"):
        assert any(words in line for line in lines), words


def test_missing_and_empty_folders(tmp_path, capsys):
    with pytest.raises(UsageError, match="there is no folder .*nowhere"):
        runs.main(runs.Args(tmp_path / "nowhere"))
    assert listed(capsys, tmp_path) == (0, [f"no runs in {tmp_path}"], [])


def test_starts_without_jax():
    """Its import takes seconds."""
    program = (
        "import sys, cleanrl_maxent.runs\n"
        "assert not {'jax', 'flax', 'tensorboardX', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_prune_removes_the_checkpoints_of_finished_runs_alone(tmp_path, capsys):
    done, stopped = finished(tmp_path / "done"), make_run(tmp_path / "stopped", checkpoints=[500])
    finished(tmp_path / "pruned", value=1.0)
    runs.remove_checkpoints(tmp_path / "pruned")
    kept = {path for path in tmp_path.rglob("*") if (done / "checkpoint") not in [path, *path.parents]}
    status, lines, errors = listed(capsys, tmp_path, prune=True, yes=True)
    assert status == 0 and not errors and set(tmp_path.rglob("*")) == kept
    assert "  4.0 MB  done" in lines and "  4.0 MB  in all" in lines
    assert "can no longer be extended" in " ".join(lines) and "data for offline learning" in " ".join(lines)
    assert lines[-1] == "removed the checkpoints of 1 run, 4.0 MB" and (stopped / "checkpoint").is_dir()
    assert listed(capsys, tmp_path, prune=True, yes=True)[1][-1] == "no finished run has checkpoints"


@pytest.mark.parametrize(("answer", "removed"), [("", False), ("n", False), (" Yes ", True), ("y", True)])
def test_prune_asks(answer, removed, tmp_path, capsys, monkeypatch):
    folder, questions = finished(tmp_path / "a"), []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or answer)
    status, lines, _ = listed(capsys, tmp_path, prune=True)
    assert status == 0 and questions == ["Remove these checkpoints? [y/N] "]
    assert (folder / "checkpoint").exists() != removed and (lines[-1] == "nothing removed") != removed


@pytest.mark.parametrize("interrupt", [EOFError, KeyboardInterrupt])
def test_no_answer_removes_nothing(interrupt, tmp_path, capsys, monkeypatch):
    def leave(question):
        raise interrupt

    folder = finished(tmp_path / "a")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", leave)
    assert (
        listed(capsys, tmp_path, prune=True)[1][-1] == "nothing removed" and (folder / "checkpoint").exists()
    )


def test_prune_without_a_terminal_is_refused(tmp_path, capsys, monkeypatch):
    folder = finished(tmp_path / "a")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(UsageError, match="add --yes"):
        runs.main(runs.Args(tmp_path, prune=True))
    assert (folder / "checkpoint").is_dir() and not capsys.readouterr().out


def test_prune_leaves_a_run_that_is_taken_or_extended_meanwhile(tmp_path, capsys, monkeypatch):
    """Another process may do so while the question is open."""
    first, second, third = (finished(tmp_path / name) for name in "abc")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with open(first / ".lock") as lock:

        def take(question):
            fcntl.flock(lock, fcntl.LOCK_EX)
            (second / "result.json").unlink()
            return "y"

        monkeypatch.setattr("builtins.input", take)
        status, lines, errors = listed(capsys, tmp_path, prune=True)
    assert status == 2 and lines[-1] == "removed the checkpoints of 1 run, 4.0 MB"
    assert [(folder / "checkpoint").exists() for folder in (first, second, third)] == [True, True, False]
    assert errors == [
        f"error: {first} keeps its checkpoints: a process is using it",
        f"error: {second} keeps its checkpoints: it is being extended",
    ]
