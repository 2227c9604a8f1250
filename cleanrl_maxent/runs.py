"""Lists the runs in a folder; removes the checkpoints of finished ones.

python -m cleanrl_maxent.runs runs
"""

import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from tyro.conf import FlagCreatePairsOff, Positional

from cleanrl_maxent.common.cli import run_script
from cleanrl_maxent.common.errors import BAD_INPUT, FINISHED, Damaged, UsageError, require
from cleanrl_maxent.common.run.inventory import Row, describe, find_runs, size
from cleanrl_maxent.common.run.locking import acquire

STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow"}
COLUMNS = {"name": "<", "algorithm": "<", "environment": "<", "seeds": "<", "steps": ">", "of": ">"}
COLUMNS |= {"return": ">", "state": "<", "size": ">"}  # how each is aligned
LOST = (
    "A finished run without its checkpoints can no longer be extended or start another run (--init-from), "
    "and its transitions, the data for offline learning, are gone. Record, policies, films and result stay."
)


@dataclass(frozen=True)
class Args:
    """Lists the runs below a folder: what they are, how far they are, how well they do, and their size."""

    folder: Positional[Path] = Path("runs")  # folder to search, with its subfolders
    prune: FlagCreatePairsOff[bool] = False  # remove the checkpoints of finished runs, after asking
    yes: FlagCreatePairsOff[bool] = False  # prune without asking


def printable(text: object) -> str:
    """A text from a file, without characters that would move the cursor or cannot be encoded."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def name_of(folder: Path, top: Path) -> str:
    """A run's name: its path below the folder listed."""
    return printable(folder.relative_to(top) if folder != top else folder.resolve().name)


def return_text(row: Row, form: str) -> str:
    return "-" if row.last_return is None else format(row.last_return, form)


def plain_table(rows: list[Row], top: Path) -> str:
    """Aligned columns, a line for each run, however long."""
    table = [list(COLUMNS)]
    for row in rows:
        what = map(printable, (row.algorithm, row.env_id, row.seeds))
        numbers = str(row.steps), str(row.total), return_text(row, ".1f")
        table.append([name_of(row.folder, top), *what, *numbers, row.state, decimal(row.size)])
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    form = "  ".join(f"{{:{align}{width}}}" for align, width in zip(COLUMNS.values(), widths, strict=True))
    return "\n".join(form.format(*line).rstrip() for line in table)


def terminal_table(rows: list[Row], top: Path) -> Table:
    """Two lines per run, which fit 60 columns; long names are folded."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="underline")
    table.add_column("run", overflow="fold")
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("return", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for row in rows:
        seeds = f"seed{'s' if '-' in row.seeds else ''} {row.seeds}"
        what = printable(f"{row.algorithm}, {row.env_id}, {seeds}")
        table.add_row(
            Text.assemble((name_of(row.folder, top), "bold"), "\n", (what, "dim")),
            Text.assemble(f"{row.steps:,}", "\n", (f"of {row.total:,}", "dim")),
            return_text(row, ",.1f"),
            Text.assemble((row.state, STYLES[row.state]), "\n", (decimal(row.size), "dim")),
        )
    return table


def show(rows: list[Row], top: Path) -> None:
    """Prints the runs, and how many there are in each state."""
    if sys.stdout.isatty():
        Console(highlight=False).print(terminal_table(rows, top))
    else:
        print(plain_table(rows, top))
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STYLES if state in states)
    print(f"{counts}; {decimal(sum(row.size for row in rows))} in all")


def prune(rows: list[Row], top: Path, yes: bool) -> int:
    """Removes the checkpoints of finished runs, after asking unless `yes`; returns the exit status."""
    finished = (row.folder for row in rows if row.state == "finished")
    sizes = {folder: size(folder / "checkpoint") for folder in finished if (folder / "checkpoint").exists()}
    if not sizes:
        print("no finished run has checkpoints")
        return FINISHED
    for folder, of_run in sizes.items():
        print(f"{decimal(of_run):>8}  {name_of(folder, top)}")
    print(f"{decimal(sum(sizes.values())):>8}  in all")
    print(textwrap.fill(LOST, shutil.get_terminal_size().columns))
    if not yes and not is_agreed("Remove these checkpoints? [y/N] "):
        print("nothing removed")
        return FINISHED
    kept = [folder for folder in sizes if not remove_checkpoints(folder)]
    removed = [of_run for folder, of_run in sizes.items() if folder not in kept]
    count = "1 run" if len(removed) == 1 else f"{len(removed)} runs"
    print(f"removed the checkpoints of {count}, {decimal(sum(removed))}")
    return BAD_INPUT if kept else FINISHED


def is_agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        print()
        return False


def remove_checkpoints(folder: Path) -> bool:
    """Removes `checkpoint/` while holding the run's lock; if it cannot, says why and returns False."""
    try:
        with open(folder / ".lock", "a") as file:
            acquire(file)
            require((folder / "result.json").exists(), "it is being extended")
            shutil.rmtree(folder / "checkpoint")
        return True
    except BlockingIOError:
        problem = "a process is using it"
    except (OSError, UsageError) as error:
        problem = str(error)
    print(printable(f"error: {folder} keeps its checkpoints: {problem}"), file=sys.stderr)
    return False


def main(args: Args) -> int:
    """Lists the runs, and prunes them if asked; returns the exit status. Raises UsageError."""
    require(args.folder.is_dir(), f"there is no folder {args.folder}")
    can_ask = args.yes or not args.prune or sys.stdin.isatty()
    require(can_ask, "--prune asks before it removes anything, and there is no terminal: add --yes")
    rows, problems = [], []
    for folder in find_runs(args.folder):
        try:
            rows.append(describe(folder))
        except Damaged as problem:
            problems.append(f"not a run: {name_of(folder, args.folder)}: {printable(problem)}")
    if rows:
        show(rows, args.folder)
    elif not problems:
        print(printable(f"no runs in {args.folder}"))
    for line in problems:
        print(line)
    return prune(rows, args.folder, args.yes) if args.prune else FINISHED


if __name__ == "__main__":
    run_script(Args, main)
