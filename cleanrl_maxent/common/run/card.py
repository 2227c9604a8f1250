"""The model card of a finished run, in the format of the Hugging Face hub."""

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.evaluation import MODE_NAMES, default_frequency
from cleanrl_maxent.common.run.folder import MAY_DIFFER

PACKAGE = Path(__file__).resolve().parent.parent.parent
LEFT_OUT = MAY_DIFFER - {"total_timesteps", "device", "allow_version_change"}  # flags that the command omits

CARD = """\
---
{front}
---

# {name} on {env_id}

{about}{steps} environment steps, {seeds}.

{scores}{films}
## Load it

In this folder, with `cleanrl_maxent` installed; {needed} are all that it needs:

```python
from cleanrl_maxent import load_policy

policy = load_policy({arguments})
action = policy(obs)  # for one observation or a batch, in the environment's units
```

## Watch it

{own}```bash
{watch}
```

## Train it again

```bash
{command}
```

{made_with}
"""


def model_card(
    args: RunArgs, config: Mapping[str, Any], result: Mapping[str, Any], videos: Sequence[str] = ()
) -> str:
    """The text of `README.md` in a finished run's folder.

    `config`, `result`: what `config.json` and `result.json` hold. `videos`: films, as paths from the folder.
    """
    seeds = ", ".join(map(str, args.seeds))
    argument = flag = ""
    needed = "`policy-*.npz` and `config.json`"
    if not is_ours(args):
        name = defining_class(args)[1].name
        needed = f"`policy-*.npz`, `config.json` and `{name}`, the algorithm's file, which you must put here,"
        argument, flag = f", algorithm={json.dumps(name)}", f" --algorithm {shlex.quote(name)}"
    module = args.env_id.rpartition(":")[0]
    own = f"The environment's module, `{module}`, must be in this folder or installed.\n\n" if module else ""
    return CARD.format(
        front=front_matter(args, result),
        name=args.exp_name,
        env_id=args.env_id,
        about=about(args),
        steps=f"{args.last_step:,}",
        seeds=f"seed {seeds}" if args.num_seeds == 1 else f"each of the seeds {seeds}",
        scores=score_table(args, result),
        films="".join(f"\n{show_film(path)}\n" for path in videos),
        needed=needed,
        arguments=f'".", seed={args.seed}{argument}',
        own=own,
        watch=f"python -m cleanrl_maxent.enjoy .{flag}",
        command=shlex.join([*program(args), *changed_flags(args)]),
        made_with=made_with(config, result),
    )


def about(args: RunArgs) -> str:
    """One line about the algorithm: the first line of its `Args` docstring, if it has one."""
    base, _ = defining_class(args)
    text = base.__doc__ or ""
    made_by_dataclass = text.startswith(f"{base.__name__}(")
    return f"{text.splitlines()[0]}\n" if text and not made_by_dataclass else ""


def front_matter(args: RunArgs, result: Mapping[str, Any]) -> str:
    """The YAML between the dashes; strings are quoted as in JSON, which YAML understands."""
    env_id, algorithm = yaml(args.env_id), yaml(args.algorithm())
    tags = [
        env_id,
        algorithm,
        "reinforcement-learning",
        "deep-reinforcement-learning",
        "maximum-entropy",
        "jax",
    ]
    lines = ["library_name: cleanrl_maxent", "tags:", *(f"- {tag}" for tag in tags)]
    if (reward := mean_reward(result)) is not None:
        lines += [
            "model-index:",
            f"- name: {yaml(args.exp_name)}",
            "  results:",
            "  - task: {type: reinforcement-learning, name: reinforcement-learning}",
            f"    dataset: {{type: {env_id}, name: {env_id}}}",
            "    metrics:",
            f'    - {{type: mean_reward, name: mean_reward, value: "{reward[0]:.2f} +/- {reward[1]:.2f}"}}',
        ]
    return "\n".join(lines)


def yaml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def mean_reward(result: Mapping[str, Any]) -> tuple[float, float] | None:
    """Mean and standard deviation of the return over the last evaluations of all seeds; None without any.

    They are those of the deterministic policy, if there is one.
    """
    for mode in MODE_NAMES:
        rows = [row for row in result["evaluations"].values() if f"{mode}/return_mean" in row]
        if rows:
            mean = fmean(row[f"{mode}/return_mean"] for row in rows)
            squares = (
                row[f"{mode}/return_std"] ** 2 + (row[f"{mode}/return_mean"] - mean) ** 2 for row in rows
            )
            return mean, math.sqrt(fmean(squares))
    return None


def score_table(args: RunArgs, result: Mapping[str, Any]) -> str:
    """A row for each seed, a column for each mode of evaluation."""
    rows = {seed: row for seed, row in result["evaluations"].items() if row}
    if not rows:
        return "It was not evaluated.\n"
    modes = [mode for mode in MODE_NAMES if any(f"{mode}/return_mean" in row for row in rows.values())]
    lines = [
        " | ".join(["| seed", *(MODE_NAMES[mode] for mode in modes)]) + " |",
        "|---" * (len(modes) + 1) + "|",
    ]
    for seed, row in rows.items():
        scores = [f"{row[f'{mode}/return_mean']:,.1f} ± {row[f'{mode}/return_std']:,.1f}" for mode in modes]
        lines.append(" | ".join([f"| {seed}", *scores]) + " |")
    episodes = f"{args.eval_episodes} episode{'s' if args.eval_episodes > 1 else ''}"
    lines += [
        "",
        f"Return at the last step: mean ± standard deviation over {episodes}.",
        "",
    ]
    return "\n".join(lines)


def show_film(path: str) -> str:
    """The Markdown that shows a film: an image for a GIF, else a player."""
    address = quote(path)
    is_image = path.endswith(".gif")
    return f"![{path}]({address})" if is_image else f'<video src="{address}" controls></video>'


def defining_class(args: RunArgs) -> tuple[type, Path]:
    """The class of the arguments and its file; in an interactive session, the class that it extends."""
    for base in type(args).__mro__:
        if file := getattr(sys.modules.get(base.__module__), "__file__", None):
            return base, Path(file).resolve()
    raise TypeError(f"{type(args)} comes from no file")


def is_ours(args: RunArgs) -> bool:
    """True if the algorithm is in this package."""
    return defining_class(args)[1].parent == PACKAGE


def program(args: RunArgs) -> list[str]:
    """The command that starts an algorithm: by module, or by file if it is not in this package."""
    _, file = defining_class(args)
    return ["python", *(["-m", f"{PACKAGE.name}.{file.stem}"] if is_ours(args) else [file.name])]


def changed_flags(args: RunArgs) -> list[str]:
    """The flags that differ from their defaults, except those that do not change what is learned."""
    words = []
    for field in fields(defining_class(args)[0]):
        name, value = field.name.replace("_", "-"), getattr(args, field.name)
        if field.name in LEFT_OUT or (field.default is not MISSING and value == field.default):
            continue
        if field.name == "eval_frequency" and value == default_frequency(args):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def made_with(config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The sentence about versions, device, time and the git commit."""
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items() if version)
    device = config["device"]
    kind = device["processor"] if device["platform"] == "cpu" else device["kind"]
    commit = f", git commit `{config['git_commit']}`" if config.get("git_commit") else ""
    return f"Made with {versions} on {kind} in {result['seconds']:,.0f} s{commit}. All flags: `config.json`."
