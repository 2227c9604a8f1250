"""What a run prints on the screen."""

import time
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cleanrl_maxent.common.activity import describe_activity, listeners
from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.devices import chosen_device
from cleanrl_maxent.common.evaluation import EVERY, default_frequency
from cleanrl_maxent.common.output import SCREEN

PLAIN_LINE_EVERY = 30.0  # seconds between two lines without a terminal


class Terminal:
    """A live status line on a terminal; without a terminal, a plain line now and then."""

    def __init__(self, args: RunArgs, folder: Path):
        self.args, self.steps, self.speed, self.evaluation = args, 0, 0.0, ""
        self.console = Console(file=cast(TextIO, SCREEN), soft_wrap=True, highlight=False)
        self.last_line = time.perf_counter()
        self.console.print(f"{args.exp_name} on {args.env_id}, seeds {args.seeds} → {folder}", markup=False)
        if args.eval_episodes and args.eval_frequency == default_frequency(args) != EVERY:
            self.console.print(f"evaluates every {args.eval_frequency:,} steps (--eval-frequency)")
        if args.num_seeds > 1 and chosen_device().platform == "cpu":
            advice = "on a CPU, one process per seed is faster, up to one per core: see benchmarks/sweep.py"
            self.console.print(advice)
        listeners.append(self.print_line)
        self.live = Live(self, console=self.console, refresh_per_second=2, transient=True)
        if self.console.is_terminal:
            self.live.start()

    def __rich__(self) -> Text:
        return Text(self.line(), no_wrap=True, overflow="ellipsis")

    def line(self) -> str:
        """Step, percent, current activity, time left, steps per second of each seed, last evaluation."""
        total = self.args.last_step
        line = f"step {self.steps:,}/{total:,} {self.steps / total:4.0%}"
        if self.console.is_terminal and (activity := describe_activity()):
            line += f"  {activity}"
        if self.speed:
            left = int((total - self.steps) / self.speed)
            line += f"  {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left  {self.speed:.0f} SPS"
        return line + self.evaluation

    def show_evaluation(self, metrics: list[dict[str, float]], seconds: float) -> None:
        """Shows each seed's mean return, of the deterministic policy if there is one."""
        name = "eval/return_mean" if "eval/return_mean" in metrics[0] else "eval_stochastic/return_mean"
        means = [row[name] for row in metrics]
        self.evaluation = "  return " + " ".join(f"{mean:.1f}" for mean in means)
        if not self.console.is_terminal:
            self.print_line(f"{self.line()}  evaluated in {seconds:.1f} s")

    def print_line(self, text: str) -> None:
        self.console.print(text, markup=False)
        self.last_line = time.perf_counter()

    def show_speed(self, speed: float) -> None:
        """Sets steps per second of each seed; without a terminal, may print a line, see PLAIN_LINE_EVERY.

        The last step prints none: the line of its evaluation, or of the run's end, says the same.
        """
        self.speed = speed
        waited = time.perf_counter() - self.last_line > PLAIN_LINE_EVERY
        if waited and not self.console.is_terminal and self.steps < self.args.last_step:
            self.print_line(self.line())

    def finish(self, seconds: float, evaluating: float) -> None:
        """Prints the last line of a finished run; `evaluating`: seconds spent on evaluations."""
        self.steps = self.args.last_step
        self.stop()
        share = f", evaluation {evaluating / seconds:.0%} of it" if evaluating else ""
        done = f"done: {self.steps:,} steps in {seconds:.0f} s{share}{self.evaluation}"
        self.console.print(done, markup=False)

    def stop(self) -> None:
        self.live.stop()
        if self.print_line in listeners:
            listeners.remove(self.print_line)
