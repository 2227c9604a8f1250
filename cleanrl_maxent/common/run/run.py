"""A run: its folder, its record, its exact state on disk, its status line, its result."""

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.config import carry_over, describe_run
from cleanrl_maxent.common.data import Replay, Transition
from cleanrl_maxent.common.env.checks import check_finite
from cleanrl_maxent.common.env.seeds import Episode, SeedEnvs
from cleanrl_maxent.common.errors import EnvironmentFailed, Finished, Stopped, WorkerDied
from cleanrl_maxent.common.evaluation import Evaluation, with_frequency
from cleanrl_maxent.common.files import named_arrays, restore_tree, subtree, write_file
from cleanrl_maxent.common.output import say
from cleanrl_maxent.common.policy import save_policies
from cleanrl_maxent.common.run.card import model_card
from cleanrl_maxent.common.run.checkpoint import Checkpoint, Checkpoints, refill
from cleanrl_maxent.common.run.ending import add_resume, add_saved
from cleanrl_maxent.common.run.folder import find_checkpoint, is_under_way, lock, make_run_dir, read_json
from cleanrl_maxent.common.run.hub import upload
from cleanrl_maxent.common.run.initial import Initial, read_initial, transfer
from cleanrl_maxent.common.run.journal import Journal
from cleanrl_maxent.common.run.machine import describe_machine
from cleanrl_maxent.common.run.result import Result, remove_results
from cleanrl_maxent.common.signals import deliver, postpone, stop_if_asked

SEGMENT_LENGTH = 10_000  # transitions that wait in memory before they are written


class Run:
    """Writes a run's files; those of seed s are in `seed-{s}/`.

    In a folder that holds an unfinished run of the same arguments, resumes it from its last good checkpoint:
    `resume` then returns that state, and truncates the record to it. In the folder of a finished run
    nothing is left to do: no step follows, and `finish` returns the recorded result.
    """

    journal: Journal  # from `resume` on

    def __init__(self, args: RunArgs, envs: SeedEnvs):
        """Makes the folder, or opens the one to resume.

        Raises UsageError if it cannot be written, is in use, or holds another run, or if `--init-from` names
        one that does not fit.
        """
        self.args, self.envs = with_frequency(args), envs
        self.initial: Initial | None = None
        self.recorded: Result | None = None  # of a finished run
        try:
            self.take_folder()
        except BaseException:
            envs.close()
            raise

    def take_folder(self) -> None:
        """Makes, locks and opens the folder; raises UsageError like the constructor."""
        args = self.args
        if args.init_from and not (args.run_dir and is_under_way(Path(args.run_dir))):
            self.initial = read_initial(args, self.envs.task)
        self.folder = Path(args.run_dir) if args.run_dir else make_run_dir(args)
        self.lock = lock(self.folder)
        try:
            self.open()
        except Finished as finished:
            recorded = read_json(self.folder / "result.json")
            self.recorded = Result(recorded | {"run_dir": str(self.folder)}, args)
            say(finished)
        except BaseException:
            self.lock.close()
            raise

    def open(self) -> None:
        """Finds the checkpoint to resume from; raises Finished, and UsageError like `find_checkpoint`."""
        args = self.args
        self.machine = describe_machine(args.num_seeds)
        self.config = describe_run(args, self.envs.task) | self.machine
        self.checkpoints = Checkpoints(self.folder / "checkpoint")
        self.resumed_from = found = find_checkpoint(self.folder, self.checkpoints, args, self.config)
        if found:
            begun = read_json(self.folder / "config.json")
            self.config |= carry_over(begun, args, found.steps)
        else:
            self.config["init_from"] = self.initial.source if self.initial else None
            self.write_json("config.json", self.config)
        self.unsaved: tuple[int, Any] | None = None  # steps and state after the last step, until saved
        self.transitions: list[Transition] = []  # since the last segment
        self.capacity = 0  # transitions to keep: the replay's, and the last one, not yet in it

    def open_journal(self, found: Checkpoint | None) -> None:
        """Opens the record; if the run is resumed, as long as it was at the checkpoint."""
        steps, meta = (found.steps, found.meta) if found else (0, {})
        self.journal = Journal(self.args, self.folder, steps, meta)
        if workers := self.envs.pool.workers:
            self.journal.terminal.print_line(f"environments in {workers} process{'es' * (workers > 1)}")

    def resume(self, state, replay: Replay | None = None) -> tuple[int, Any, Any]:
        """The steps taken so far, and the state and replay at that point; the environments are restored too.

        `state`, `replay`: freshly made, leading axis `(seed,)`; a new run gets them back, with the networks
        of `--init-from` if given. In a finished run the steps exceed the last one, so that none follows. The
        replay's arrays are consumed. Raises UsageError if the state does not fit or an environment cannot be
        restored.
        """
        if self.recorded:
            return self.args.last_step + 1, state, replay
        self.capacity = replay.capacity + 1 if replay else 0
        found, self.resumed_from = self.resumed_from, None
        if found is None:
            self.open_journal(None)
            if self.initial:
                where = "networks of {run_dir} after {steps:,} steps, seeds {seeds}"
                self.journal.terminal.print_line(where.format(**self.initial.source))
                state = transfer(state, self.initial)
            return 0, state, replay
        self.envs.restore(found.steps, found.meta["envs"], subtree("envs/", found.arrays))
        state = restore_tree(state, subtree("state/", found.arrays))
        if replay:
            replay = refill(replay, found.segments, found.steps)
            if self.args.env_reset == "restart":
                self.transitions = [self.envs.transition]  # on disk it is not cut short
        remove_results(self.folder)  # of the run before it was extended
        self.write_json("config.json", self.config)
        self.open_journal(found)  # after all that can fail, since it cuts the record
        self.journal.losses = subtree("metrics/", found.arrays)
        self.journal.terminal.steps = found.steps
        self.journal.terminal.print_line(f"resumed at step {found.steps:,}")
        return found.steps, state, replay

    def end_step(
        self, steps: int, state, losses: Mapping[str, jax.Array], episodes: Iterable[Episode] = ()
    ) -> None:
        """Ends a step: records it, and saves every `--checkpoint-frequency` steps and at the last one.

        `steps`: environment steps so far. `state`: everything learned. `losses`, `episodes`: see `Journal`.
        Raises Stopped after a signal (the run is saved before it ends), NonFiniteError, and OSError if it
        cannot be written; the previous checkpoint is kept.
        """
        self.journal.record_episodes(steps, episodes)
        self.journal.record_losses(steps, losses)
        self.unsaved = steps, state
        if self.capacity:
            self.transitions.append(self.envs.transition)
        if len(self.transitions) == SEGMENT_LENGTH:
            self.write_segment(steps)
        frequency = self.args.checkpoint_frequency
        if steps == self.args.last_step or (frequency and self.args.crosses_multiple_of(frequency, steps)):
            self.save()
        stop_if_asked()

    def write_segment(self, steps: int) -> None:
        """Moves the transitions gathered so far to the disk."""
        if self.transitions:
            self.checkpoints.add_segment(steps, self.transitions)
            self.transitions = []

    def save(self) -> None:
        """Writes a checkpoint of the last step."""
        if self.unsaved is None:
            return
        (steps, state), self.unsaved = self.unsaved, None
        learned = named_arrays(state)
        check_finite(steps, self.args.seeds, **learned)
        environments, env_arrays = self.envs.snapshot()
        course, arrays = self.journal.snapshot()
        meta = {"args": asdict(self.args), "machine": self.machine, "envs": environments, **course}
        arrays |= {f"envs/{name}": array for name, array in env_arrays.items()}
        arrays |= {f"state/{name}": array for name, array in learned.items()}
        self.write_segment(steps)
        self.checkpoints.write(steps, meta, arrays, self.capacity)

    def record_episodes(self, steps: int, episodes: Iterable[Episode]) -> None:
        """Writes a row for each episode that ended at this step; for steps without `end_step`."""
        self.journal.record_episodes(steps, episodes)

    def evaluate(
        self, evaluation: Evaluation, steps: int, policies, keys: jax.Array, temperature=0.0
    ) -> None:
        """Evaluates the policies, and records a row for each seed; see `Evaluation`. Raises Stopped."""
        evaluation.pool = self.envs.pool
        self.journal.evaluate(evaluation, steps, policies, keys, temperature)

    def finish(self, policies) -> Result:
        """Writes every policy, closes everything, and writes `result.json`, which marks a finished run.

        `policies`: leading axis `(seed,)`. Returns what `result.json` holds.
        """
        if self.recorded:
            if self.args.upload_model:
                upload(self.folder, self.args)
            return self.recorded
        save_policies(self.folder, self.args.seeds, policies)
        timing = self.journal.timing
        seconds = timing.seconds()
        self.journal.terminal.finish(seconds, timing.evaluating)
        self.journal.close()
        evaluations = zip(self.args.seeds, self.journal.evaluations, strict=True)
        result = {
            "run_dir": str(self.folder),
            "total_timesteps": self.args.total_timesteps,
            "seconds": round(seconds, 3),
            "evaluation_seconds": round(timing.evaluating, 3),
            "evaluations": {str(seed): row for seed, row in evaluations},
        }
        films = [f"videos/{path.name}" for _, path in self.journal.filming.earlier(self.args.last_step)]
        card = model_card(self.args, self.config, result, films)
        write_file(self.folder / "README.md", card.encode(errors="replace"))
        self.write_json("result.json", result)
        self.journal.tracker.finish(exit_code=0)
        if self.args.upload_model:
            upload(self.folder, self.args)
        return Result(result, self.args)

    def close(self) -> None:
        """Closes the environments, and the files of a run, finished or not."""
        self.envs.close()
        if not self.recorded and hasattr(self, "journal"):
            self.journal.close()
            self.journal.tracker.finish(exit_code=1)

    def __enter__(self) -> "Run":
        postpone()
        return self

    def __exit__(self, kind, problem, traceback) -> None:
        ended_by = problem
        try:
            with self.lock, closing(self):
                if isinstance(problem, Stopped):
                    try:
                        self.save()
                    except WorkerDied as died:
                        add_saved(died, self.folder, self.checkpoints)
                        raise
                    add_resume(problem, self.folder, self.checkpoints)
                elif isinstance(problem, EnvironmentFailed | WorkerDied):  # in the middle of a step
                    add_saved(problem, self.folder, self.checkpoints)
        except BaseException as failure:
            ended_by = failure
            raise
        finally:
            deliver(ended_by)

    def write_json(self, name: str, content: dict) -> None:
        write_file(self.folder / name, json.dumps(content, indent=2).encode() + b"\n")
