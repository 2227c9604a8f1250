"""The file: `Args`, its types, and the signatures of its functions. What is missing is said in one line.

Other tests skip a file that lacks any of it.
"""

import re
from dataclasses import fields
from inspect import get_annotations

import pytest

import cleanrl_maxent
from cleanrl_maxent.common.cli import RunArgs
from tests.support.breaches import SIGNATURES, arguments_breach, demand, flag_breach, signature_breach, stem
from tests.support.tree import PACKAGE


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_a_file_with_one_of_args_and_train_has_the_other(path):
    """Else it is no algorithm, which nothing else would say."""
    text = path.read_text()
    parts = {"class Args(RunArgs)": r"^class Args\(RunArgs\)", "def train(args)": r"^def train\b"}
    found = [part for part, pattern in parts.items() if re.search(pattern, text, re.MULTILINE)]
    missing = " and ".join(parts.keys() - found)
    demand(len(found) != 1, f"{path.stem}.py has {', '.join(found)} and no {missing}: the contract has both")


def test_args_are_a_dataclass_of_arguments(algorithm):
    line = arguments_breach(algorithm)
    demand(line is None, line)


@pytest.mark.parametrize("function", SIGNATURES)
def test_a_function_has_the_signature_of_the_contract(algorithm, function):
    line = signature_breach(algorithm, function)
    demand(line is None, line)
    found = getattr(algorithm, function, None)
    demand(found is None or found.__doc__, f"{stem(algorithm)}.{function} has no docstring")


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        pytest.param(module, field.name, id=f"{name} {field.name}")
        for name, module in cleanrl_maxent.algorithms().items()
        if issubclass(module.Args, RunArgs)
        for field in fields(module.Args)
        if field.name in get_annotations(module.Args)
    ],
)
def test_a_number_states_its_range(module, flag):
    line = flag_breach(module, flag)
    demand(line is None, line)
