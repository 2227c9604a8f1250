"""Every script of benchmarks/ runs as a file and as a module, from any folder."""

import ast
import importlib
import os
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest

import cleanrl_maxent
from benchmarks.commands import ROOT, applicable_flags, check_algorithms, words
from benchmarks.faults import Cost, Kill, Sweep, differences, main
from benchmarks.figures import plural
from cleanrl_maxent.common.errors import UsageError

MODULES = sorted((ROOT / "benchmarks").rglob("*.py"))
SCRIPTS = [path for path in MODULES if "__main__" in path.read_text()]
NAMES = [str(path.relative_to(ROOT).with_suffix("")).replace(os.sep, ".") for path in SCRIPTS]
# imports each script as `python -m` would, all in one process, which prints the name of each that helped
AS_MODULES = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        print("helped:", name, stop.code)
"""


def run(*command, folder, **options):
    """A process in another folder, for which only the installation says where the project is."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, **options)


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_as_a_file(path, tmp_path):
    done = run(path, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout and not done.stderr


@pytest.mark.slow
def test_as_modules(tmp_path):
    done = run("-c", AS_MODULES, *NAMES, folder=tmp_path)
    assert [line for line in done.stdout.splitlines() if line.startswith("helped: ")] == [
        f"helped: {name} 0" for name in NAMES
    ], done.stderr


@pytest.mark.slow
def test_bad_input_is_a_line_and_a_status(tmp_path):
    done = run(ROOT / "benchmarks" / "report.py", "draw", "nowhere", "--out-dir", "out", folder=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "error: nowhere holds no run: no config.json in it or one level below"
    ]


@pytest.mark.parametrize(
    "command, named",
    [
        (Kill(kills=0), "kills must be an integer in"),
        (Kill(workers=0), "workers must be an integer in"),
        (Sweep(seeds=0), "seeds must be an integer in"),
        (Sweep(every=0.0), "every must be a finite number > 0; got 0.0"),
        (Cost(num_seeds=(1, 0)), "num_seeds must be a tuple of one value or more, each an integer in"),
    ],
)
def test_a_fault_test_without_faults_is_refused(command, named):
    with pytest.raises(UsageError, match=named):
        main(command)


def test_no_module_hides_another():
    """A script that runs as a file has its own folder first on the path."""
    folders = {path.parent for path in MODULES} - {ROOT / "benchmarks"}
    names = {path.stem for path in MODULES if path.stem != "__init__"} | {path.name for path in folders}
    assert {"sweep", "speed", "studies", "sql_mixture", "peer"} <= names
    assert not names & sys.stdlib_module_names
    assert not names & packages_distributions().keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_style_of_a_module(path):
    """Imports by whole names, no mock, no list of algorithms, and nothing but a call under `__main__`."""
    tree, own = ast.parse(path.read_text()), {path.stem for path in MODULES}
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            strings = {entry.value for entry in node.elts if isinstance(entry, ast.Constant)}
            assert len(strings & cleanrl_maxent.algorithms().keys()) < 2
    assert not {name.partition(".")[0] for name in imported} & own
    assert not {name for name in imported if "mock" in name}
    last = tree.body[-1] if tree.body else None
    if path in SCRIPTS and path.stem != "peer":  # which imports nothing of ours
        assert ast.unparse(last.test) == "__name__ == '__main__'" and len(last.body) == 1
        assert last.body[0].value.func.id in ("run_script", "run_from_command_line")


def test_the_variant_of_an_algorithm_is_a_short_diff():
    """sql_mixture.py against sql.py, as `git diff --stat` counts."""
    files = ("cleanrl_maxent/sql.py", "benchmarks/studies/mixture/sql_mixture.py")
    command = ["git", "diff", "--no-index", "--numstat", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    added, removed = map(int, done.stdout.split()[:2])
    assert added <= 45 and removed <= 12
    variant = importlib.import_module("benchmarks.studies.mixture.sql_mixture")
    assert variant.Args.algorithm() == variant.Args.exp_name == "sql_mixture"
    assert "sql_mixture" not in cleanrl_maxent.algorithms()


def test_small_helpers():
    assert [plural(count, "seed") for count in (1, 2)] == ["1 seed", "2 seeds"]
    flags = {"tau": 0.5, "autotune": False, "hidden_dims": [8, 8], "num_envs": 2}
    assert list(words(applicable_flags("sac", flags))) == "--tau 0.5 --no-autotune --hidden-dims 8 8".split()
    check_algorithms(cleanrl_maxent.algorithms())
    with pytest.raises(UsageError, match="a.toml: unknown algorithm 'sacc'; there are a2c"):
        check_algorithms(["sac", "sacc"], "a.toml: ")
    assert differences({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == ["b", "c"]
