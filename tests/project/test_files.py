"""The tree itself: style, names, sizes, and what an import does."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest

from tests.support.tree import COMMON, PACKAGE, ROOT, imported

MODULES = list(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_no_module_hides_another():
    """A script's folder is first on sys.path, so its neighbours must not be named like a library."""
    modules = {path.stem for path in MODULES} - {"__init__"}
    packages = {path.parent.name for path in MODULES if path.stem == "__init__"} - {"cleanrl_maxent"}
    assert {"sac", "data", "env"} <= modules | packages
    assert not (modules | packages) & (packages_distributions().keys() | sys.stdlib_module_names)


def test_no_two_modules_of_common_differ_by_an_ending():
    """Such names do not say which module to open."""
    names = {path.stem for path in COMMON.rglob("*.py")}
    assert not [(a, b) for a in names for b in names if a != b and b.startswith(a)]


def test_files_stay_small():
    lines = {path.relative_to(COMMON): path.read_text().count("\n") for path in COMMON.rglob("*.py")}
    assert len(lines) > 15 and not {path: count for path, count in lines.items() if count > 250}


def test_algorithms_do_not_import_one_another():
    """Nor do other scripts beside them: they use `common` and `environments` alone."""
    for path in PACKAGE.glob("*.py"):
        names = {name for name in imported(path) if name.split(".")[0] in ("cleanrl_maxent", "")}
        allowed = (
            r"cleanrl_maxent($|\.(common|environments)\b)" if path.stem != "__init__" else "cleanrl_maxent"
        )
        assert not [name for name in names if not re.match(allowed, name)], path.name


def test_import_builds_no_array():
    """Else JAX would have chosen its device and its threads before a run can."""
    program = (
        "import cleanrl_maxent\nassert len(cleanrl_maxent.algorithms()) >= 5\n"
        "from jax._src import xla_bridge\nassert not xla_bridge._backends, 'a backend is up'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
