"""The tree itself: names, sizes, style, and that the README speaks of what exists."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PACKAGE = ROOT / "cleanrl_maxent"
DEPENDENCIES = {
    "jax",
    "flax",
    "optax",
    "gymnasium",
    "numpy",
    "scipy",
    "tyro",
    "rich",
    "tensorboardX",
    "wandb",
    "mujoco",
}


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_no_module_hides_another():
    """A script's folder is first on sys.path, so its neighbours must not be named like a library."""
    names = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert not names & (set(sys.stdlib_module_names) | DEPENDENCIES)


def test_files_stay_small():
    lines = {path.name: len(path.read_text().splitlines()) for path in (PACKAGE / "common").glob("*.py")}
    assert max(lines.values()) <= 250 and sum(lines.values()) <= 1800


def test_algorithms_do_not_import_one_another():
    algorithms = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    for name in algorithms:
        text = (PACKAGE / f"{name}.py").read_text()
        assert not any(f"cleanrl_maxent.{other} " in text for other in algorithms), name
        assert "from cleanrl_maxent import" not in text, name


def test_commands_of_the_documents_parse():
    """Every command that runs an algorithm, in the README and in docs/, is made of flags that exist."""
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    commands = re.findall(r"^python cleanrl_maxent/(\w+)\.py(.*?)(?:#.*)?$", text, re.MULTILINE)
    assert {name for name, _ in commands} == {"ddpg", "td3", "sac", "sql", "maxent_pg", "tabular"} and len(
        commands
    ) >= 9
    for name, flags in commands:
        tyro.cli(importlib.import_module(f"cleanrl_maxent.{name}").Args, args=flags.split())


def test_the_diff_of_the_siblings_is_the_paper():
    command = ["git", "diff", "--no-index", "--numstat", PACKAGE / "ddpg.py", PACKAGE / "td3.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    added, removed, _ = done.stdout.split(maxsplit=2)
    assert int(removed) <= 25 and int(added) <= 70


def test_siblings_have_the_same_functions_in_the_same_order():
    """What SAC needs besides: its density, its temperature, and that temperature's loss. Soft Q-learning: the
    scale of rewards, its sampler, the soft value, and Stein's direction.
    """

    def names(name):
        return re.findall(r"^(?:def|class) (\w+)", (PACKAGE / f"{name}.py").read_text(), re.MULTILINE)

    added = {"gaussian", "sample_action", "temperature", "alpha_loss"}
    added |= {"reward_scale", "sample", "repeat", "soft_value"}
    added |= {"sample_particles", "log_density", "stein_direction"}
    ddpg, td3, sac, sql = (
        [name for name in names(file) if name not in added | {"next_noise"}]
        for file in ("ddpg", "td3", "sac", "sql")
    )
    assert ddpg == td3 == sac
    assert sql == [name for name in sac if name != "improve_policy"]


def test_readme_names_every_file():
    missing = {
        str(path.relative_to(ROOT))
        for folder in ("cleanrl_maxent", "benchmarks", "tests", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md") and path.stem not in ("__init__", "conftest")
        if f"`{path.relative_to(ROOT)}`" not in README
    }
    assert not missing


def test_import_builds_no_array():
    program = (
        "import jax\nfrom cleanrl_maxent import sac\n"
        "from jax._src import xla_bridge\nassert not xla_bridge._backends, 'a backend is up'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
