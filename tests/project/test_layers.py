"""The rooms of `common`: each imports only from those before it, and none has an algorithm in it."""

import ast
import re

import pytest

import cleanrl_maxent.common
from tests.support.tree import COMMON, imported

# a line of the docstring for each room, in order
ROOMS = re.findall(r"^ {4}(\w+) ", cleanrl_maxent.common.__doc__ or "", re.MULTILINE)
FILES = sorted(path.relative_to(COMMON) for path in COMMON.rglob("*.py"))


def test_the_docstring_names_every_room():
    rooms = {path.parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert len(ROOMS) == len(set(ROOMS)) and set(ROOMS) == rooms


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_room_imports_only_from_rooms_before_it(file):
    room = file.parts[0].removesuffix(".py")
    before = ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else []
    for name in imported(COMMON / file):
        package, _, rest = name.partition(".")
        assert package, f"{name} is relative"
        if package == "cleanrl_maxent" and rest != "common":
            common, _, rest = rest.partition(".")
            assert common == "common" and rest.split(".")[0] in before, name


@pytest.mark.parametrize("file", FILES, ids=str)
def test_common_has_no_network_optimiser_or_gradient(file):
    assert not [name for name in imported(COMMON / file) if re.match(r"optax|flax\.(linen|nnx)", name)]
    nodes = ast.walk(ast.parse((COMMON / file).read_text()))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not names & {"grad", "value_and_grad", "vjp", "jvp", "linen", "nnx"}
