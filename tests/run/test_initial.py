"""A run that begins with another's networks: what it takes, and what is refused, leaving nothing."""

import json
import re
import shutil

import numpy as np
import pytest

from cleanrl_maxent import sac, td3
from cleanrl_maxent.common.env.task import Task
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run.initial import read_initial, split_seed
from tests.support.runs import SMALL, interrupted, train

TASK = Task(3, 1, low=(-2.0,), high=(2.0,))  # of Pendulum-v1


@pytest.fixture
def copied(run, tmp_path):
    """A copy of a finished run of seeds 3 and 4."""
    return shutil.copytree(run[0], tmp_path / "trained")


def refused(algorithm=sac, path=None, **given):
    """What `train` says, a line, and the run's folder is not made."""
    args = SMALL | dict(seed=3) | given
    with pytest.raises(UsageError) as caught:
        train(args, path, algorithm)
    assert "\n" not in str(caught.value) and not path.exists()
    return str(caught.value)


@pytest.mark.slow
def test_what_does_not_fit_is_refused_in_a_line(copied, tmp_path):
    new = tmp_path / "new"
    trained = dict(init_from=str(copied), path=new)
    assert f"is not a run: there is no {tmp_path}/x/config.json" in refused(
        init_from=f"{tmp_path}/x", path=new
    )
    assert f"{copied} is a run of sac, not of td3" in refused(td3, **trained)
    hopper = dict(env_id="Hopper-v4", **trained)
    assert refused(**hopper) == f"spaces differ: obs_dim is 3 in {copied} and 11 in Hopper-v4"
    words = f"{copied} has seeds 3 to 4: name one, such as {copied}/seed-3"
    assert refused(**trained, num_seeds=3) == words
    assert refused(init_from=f"{copied}/seed-5", path=new) == words
    shutil.rmtree(copied / "checkpoint")
    assert "has no checkpoint, which would hold its networks" in refused(**trained)


@pytest.mark.parametrize("widths", [(8, 9), (8,), (8, 8, 8)])
def test_networks_of_other_shapes_are_refused(copied, tmp_path, widths):
    words = refused(init_from=str(copied), hidden_dims=widths, path=tmp_path / "new")
    assert words.startswith("networks differ: actor/params/params/Dense_")
    shapes = rf" is (\(1, .*\)|missing) in {copied} and (\(1, .*\)|missing) here, seeds first; give the flags"
    assert re.search(shapes, words)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(copied, tmp_path, capsys):
    max(copied.glob("checkpoint/state-*")).write_bytes(b"")
    args = sac.Args(**SMALL | dict(seed=3, init_from=str(copied)))
    initial = read_initial(args, TASK)
    assert initial.source["steps"] == 540 and "fails its checksum" in capsys.readouterr().out


def test_each_seed_takes_its_namesake_or_the_one_that_is_named(copied):
    args = sac.Args(**SMALL | dict(seed=3, num_seeds=2, init_from=str(copied)))
    both = read_initial(args, TASK)
    one = read_initial(sac.Args(**SMALL | dict(seed=8, init_from=f"{copied}/seed-4")), TASK)
    assert both.source["seeds"] == [3, 4] and one.source["seeds"] == [4]
    for name, array in one.arrays.items():
        assert np.array_equal(array[0], both.arrays[name][1]), name
    assert both.source["sha256"] != one.source["sha256"]


def test_a_folder_called_like_a_seed_is_a_run_if_there_is_none_above(tmp_path):
    assert split_seed(tmp_path / "seed-2") == (tmp_path / "seed-2", None)
    (tmp_path / "config.json").touch()
    assert split_seed(tmp_path / "seed-2") == (tmp_path, 2)
    assert split_seed(tmp_path / "seed-x") == (tmp_path / "seed-x", None)


@pytest.mark.slow
def test_a_run_resumes_without_the_one_that_it_began_with(copied, tmp_path, monkeypatch):
    """Its checkpoint has the networks; `config.json` still says where they are from."""
    args = SMALL | dict(seed=3, init_from=str(copied))
    interrupted(args, tmp_path / "new", monkeypatch)
    source = json.loads((tmp_path / "new" / "config.json").read_text())["init_from"]
    shutil.rmtree(copied)
    train(args | dict(init_from=f"{copied}/"), tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["init_from"] == source
    assert source["run_dir"] == str(copied) and source["steps"] == 570
