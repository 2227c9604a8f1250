"""One seed's record in W&B; W&B is imported only in the process of `cleanrl_maxent.track`."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

from cleanrl_maxent.common.config import read_config
from cleanrl_maxent.common.errors import one_line


def in_a_line(problem: Exception) -> str:
    """The message of an exception, in one line of 200 characters at most."""
    return shorten(one_line(problem), 200, placeholder=" …").rstrip(".")


class Mirror:
    """The W&B run of a seed: row n of its record is W&B's step n, so that no row is sent twice or missed.

    `wandb/seed-{s}.json` keeps the id of the W&B run, the number of its rows and their SHA-256, and the
    folder of an offline W&B run that has not ended.
    """

    def __init__(self, folder: Path, seed: int, options: dict[str, Any], say: Callable[[str], None]):
        """`options`: those of `wandb.init`; its mode is online or offline. `say` shows a line."""
        self.folder, self.seed, self.options, self.say = folder, seed, options, say
        self.file = folder / "wandb" / f"seed-{seed}.json"
        self.state = new_state()
        with suppress(OSError, ValueError, TypeError):
            self.state |= json.loads(self.file.read_text())
        self.run: Any = None  # W&B's

    @property
    def offline(self) -> bool:
        return self.options["mode"] == "offline"

    def open(self) -> None:
        """Starts the W&B run, or resumes it after the last row that it holds; raises whatever W&B raises."""
        import wandb

        for offline_run in self.folder.glob("wandb/offline-run-*"):
            if self.offline and offline_run.name == self.state["unfinished"]:
                shutil.rmtree(offline_run, ignore_errors=True)  # it may be incomplete: written again
        group = self.folder.resolve().name
        self.run = wandb.init(
            **self.options,
            id=self.state["id"],
            resume="allow",
            group=group,
            name=f"{group}-seed-{self.seed}",
            dir=str(self.folder),
            config=self.config(),
            reinit="create_new",
        )
        self.run.define_metric("*", step_metric="global_step")
        # the first row to send: online, W&B knows it; offline, it follows the rows written
        self.first = self.state["rows"] if self.offline else self.run.starting_step
        self.state["unfinished"] = Path(self.run.dir).parent.name if self.offline else None
        self.save()
        # read from the record so far: bytes, rows, environment steps
        self.position, self.row, self.steps = 0, 0, 0
        self.sha256 = hashlib.sha256()
        self.filmed: set[Path] = set()

    def config(self) -> dict[str, Any]:
        """What W&B shows as the run's configuration."""
        config = read_config(self.folder)
        return {**config, **config["args"], "seed": self.seed}

    def save(self) -> None:
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state) + "\n")
        os.replace(temporary, self.file)

    def send(self) -> None:
        """Sends the rows and films that the run has written since the last call.

        Starts a new W&B run if the record no longer begins with what was sent: W&B cannot delete rows.
        """
        with open(self.folder / f"seed-{self.seed}" / "metrics.jsonl", "rb") as file:
            file.seek(self.position)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                break  # it is being written
            row = json.loads(line)
            if self.row >= self.first:
                self.run.log(row | self.films(row["global_step"]), step=self.row)
            self.position, self.row, self.steps = self.position + len(line), self.row + 1, row["global_step"]
            self.sha256.update(line)
            if self.row == self.state["rows"] and self.sha256.hexdigest() != self.state["sha256"]:
                self.say(f"W&B: seed {self.seed} no longer matches what was sent: a new W&B run begins")
                self.run.finish(exit_code=1)
                self.state = new_state()
                self.open()
                return self.send()

    def films(self, steps: int) -> dict[str, Any]:
        """The film made since the previous row, up to environment step `steps`; empty without one.

        W&B logs a film with the row of its step, which is written after the film.
        """
        import wandb

        film = {}
        for path in sorted(set(self.folder.glob(f"videos/step-*-seed-{self.seed}.gif")) - self.filmed):
            made = int(path.name.split("-")[1])
            if self.steps <= made <= steps:
                self.filmed.add(path)
                try:
                    film["film"] = wandb.Video(str(path), caption=f"step {made:,}", format="gif")
                except Exception as problem:
                    self.say(f"warning: W&B lacks a film: {in_a_line(problem)}")
        return film

    def finish(self, exit_code: int) -> None:
        """Ends the W&B run; raises TimeoutError if W&B does not accept the rest in time."""
        if self.row > self.first and (film := self.films(self.steps)):  # the film of the last step
            self.run.log(film, step=self.row - 1)
        self.run.config.update(self.config(), allow_val_change=True)
        self.run.finish(exit_code=exit_code)
        self.state |= {"rows": self.row, "sha256": self.sha256.hexdigest(), "unfinished": None}
        self.save()
        if not self.offline:
            for file in self.folder.glob(f"wandb/offline-run-*/run-{self.state['id']}.wandb"):
                file.with_suffix(".wandb.synced").touch()  # W&B's own mark: `wandb sync` would send it twice


def new_state() -> dict[str, Any]:
    """The state of a W&B run that does not exist yet."""
    return {"id": secrets.token_hex(4), "rows": 0, "sha256": None, "unfinished": None}
