"""A policy on disk: the names of its arrays, and what is refused when it is loaded."""

import io
import json
import pickle
import re
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cleanrl_maxent import load_policy, sac
from cleanrl_maxent.common import output
from cleanrl_maxent.common.cli import RunArgs
from cleanrl_maxent.common.config import FORMAT
from cleanrl_maxent.common.env.task import Task, describe_task, parse_task
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.files import pack, unpack
from cleanrl_maxent.common.policy import LoadedPolicy, policy_arrays, read_parameters
from cleanrl_maxent.common.run.result import Result

KERNEL, BIAS = np.arange(6.0).reshape(2, 3), np.arange(3.0)


def test_names_are_those_of_dictionaries():
    policy = Partial(max, {"params": {"Dense_0": {"kernel": KERNEL, "bias": BIAS}}})
    assert policy_arrays(policy).keys() == {"params/Dense_0/kernel", "params/Dense_0/bias"}


def test_two_networks_of_the_same_names_are_told_apart_by_position():
    policy = Partial(max, {"params": {"kernel": KERNEL}}, {"params": {"kernel": 2 * KERNEL}})
    first, second = policy_arrays(policy).values()
    assert np.array_equal(first, KERNEL) and np.array_equal(second, 2 * KERNEL)


@pytest.fixture
def copied(run, tmp_path):
    """`config.json` and the policies of a run of seeds 3 and 4, and nothing else of it."""
    for name in ("config.json", "policy-3.npz", "policy-4.npz"):
        shutil.copy(run[0] / name, tmp_path)
    return tmp_path


def refused(folder, seed=None):
    """What `load_policy` says, a line."""
    with pytest.raises(UsageError) as caught:
        load_policy(folder, seed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_actions_are_in_the_units_of_the_environment(copied):
    """Within the bounds of Pendulum's torque, ±2; of one observation or a batch; sampled ones differ."""
    policy = load_policy(copied, 4)
    obs = np.random.default_rng(0).normal(size=(2, 50, 3))
    actions = policy(obs)
    assert actions.shape == (2, 50, 1) and actions.dtype == np.float32
    assert 1 < np.abs(policy(obs, deterministic=False)).max() <= 2
    np.testing.assert_allclose(policy(obs[1, 7]), actions[1, 7], atol=1e-5)
    assert np.array_equal(policy(obs), actions)
    first, second = (policy(obs, deterministic=False) for _ in range(2))
    assert not np.array_equal(first, second)
    assert load_policy(copied).seed == 3 and load_policy(copied / "seed-4").seed == 4
    for wrong in (0.0, np.zeros(2), np.zeros((3, 4))):
        with pytest.raises(UsageError, match=r"observations must have shape \(\.\.\., 3\); got \("):
            policy(wrong)


def test_one_discrete_action_is_a_scalar():
    """As in training: an environment may look it up in a dictionary."""
    algorithm = SimpleNamespace(act=lambda policy, obs, key, deterministic: jnp.int32(obs[..., 0] > 0))
    policy = LoadedPolicy(algorithm, RunArgs(), Task(3, 2, discrete=True, first_action=4), 1, ())
    assert {5: "right"}[policy(np.ones(3))] == "right"
    assert policy(np.ones((2, 3))).tolist() == [5, 5]


def test_a_result_can_be_sent_to_another_process(copied):
    result = Result({"run_dir": str(copied), "seconds": 1.0}, sac.Args())
    received = pickle.loads(pickle.dumps(result))
    assert received == result and (received.policy(4)([1, 0, 0]) == load_policy(copied, 4)([1, 0, 0])).all()


def test_a_result_finds_its_algorithm_in_a_session_that_names_a_function_act(copied, monkeypatch):
    session = ModuleType("session")
    session.act = print
    monkeypatch.setitem(sys.modules, "session", session)
    own = type("Own", (sac.Args,), {"__module__": "session", "exp_name": "sac"})
    assert Result({"run_dir": str(copied)}, own()).policy(4).algorithm is sac


def test_an_observation_that_is_not_finite(copied):
    with pytest.raises(UsageError, match="observations must be finite"):
        load_policy(copied, 4)([np.nan, 0, 0])


def test_a_seed_that_is_no_integer(copied):
    assert load_policy(copied, np.int64(4)).seed == 4
    for seed in (4.0, "4"):
        assert f"seed must be an integer; got {seed!r}" in refused(copied, seed)


def test_a_seed_that_the_run_does_not_have(copied):
    assert refused(copied, 5) == f"{copied} has seeds 3 to 4, not 5"


def test_a_folder_without_a_run(tmp_path):
    assert "is not a run: there is no" in refused(tmp_path)
    assert "is not a run: there is no" in refused(tmp_path / "nothing")


def test_an_unfinished_run(copied):
    (copied / "policy-3.npz").unlink()
    has_another = f"{copied} has no policy-3.npz, but policy-4.npz; name a seed that it has"
    assert refused(copied) == has_another and load_policy(copied, 4).seed == 4
    (copied / "policy-4.npz").unlink()
    assert "is not finished: it has no policy-3.npz yet" in refused(copied)
    (copied / "result.json").touch()
    assert "has lost its policy-3.npz; there is no checkpoint to write it from" in refused(copied)
    (copied / "checkpoint").mkdir()
    (copied / "checkpoint" / "checkpoint-0000000570.json").touch()
    assert f"{copied} has lost its policy-3.npz; --resume {copied} writes it again" in refused(copied)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("undefined", "mine.py cannot be imported: NameError: name 'undefined' is not defined"),
        ("assert False", "mine.py cannot be imported: AssertionError: .*mine.py, line 1"),
        ("", "mine.py is not an algorithm: it defines no Args"),
        ("from cleanrl_maxent.sac import Args, init, policy", "is not an algorithm: it defines no act"),
    ],
)
def test_a_file_that_is_no_algorithm(text, words, copied, tmp_path):
    with pytest.raises(UsageError, match="typed is not an algorithm: it defines no Args"):
        load_policy(copied, algorithm=ModuleType("typed"))
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UsageError, match=words):
        load_policy(copied, algorithm=tmp_path / "mine.py")


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(algorithm="ppo_2040"), "was trained by ppo_2040.py, which is not part of this package"),
        (dict(algorithm="../evil"), "was trained by ../evil.py, which is not part of this package"),
        (dict(algorithm=7), "does not belong to a run"),
        (dict(algorithm="td3"), "was written by other code: td3.py has no alpha"),
        (dict(args={"seed": "3"}), "config.json is damaged, or does not fit sac.py: seed must be an integer"),
        (dict(args={"hidden_dims": "os.system"}), "does not fit sac.py: hidden_dims must be a tuple"),
        (dict(args={"horizon": 5}), "was written by other code: sac.py has no horizon"),
        (dict(args=[]), "does not belong to a run"),
        (dict(format=FORMAT + 1), f"was written by newer code: format {FORMAT + 1}, and this version reads"),
        (dict(format="newest"), "format must be an integer"),
        (dict(task={"obs_dim": 3}), "config.json is damaged"),
        (dict(task={"obs_dim": -3, "action_dim": 1}), "config.json is damaged: a task of -3 observations"),
        (dict(task={"obs_dim": 3, "action_dim": 1, "low": [-1], "high": ["1e999"]}), "bounds of actions"),
        (dict(task={"obs_dim": 3, "action_dim": 1, "low": [-1], "high": []}), "config.json is damaged"),
        (
            dict(task=dict(obs_dim=3, action_dim=1, low=[0], high=[1], action_dtype="O")),
            "actions of dtype 'O'",
        ),
        (dict(task={"obs_dim": 3, "dimensions": 1}), "config.json is damaged"),
        (dict(task={"obs_dim": 3, "action_dim": 1, "low": [2], "high": [-2]}), "bounds of actions"),
        (dict(task=dict(obs_dim=3, action_dim=2, discrete=True, first_action="x")), "a first action of 'x'"),
        (dict(task=dict(obs_dim=3, action_dim=2, discrete=True, first_action=2**70)), "a first action of"),
        (dict(task={"obs_dim": 4, "action_dim": 1, "low": [-2], "high": [2]}), "not this run's policy"),
    ],
)
def test_a_foreign_or_changed_config(copied, changes, words):
    change_config(copied, **changes)
    assert words in refused(copied)


def test_a_change_of_the_algorithms_file_is_said(copied, capsys, monkeypatch):
    """Shapes that still fit are no proof that the networks compute the same."""
    monkeypatch.setattr(output, "warned", set())
    config = change_config(copied)
    for digest, warnings in ((None, 0), (config["algorithm_sha256"], 0), ("0" * 64, 1), ("1" * 64, 0)):
        change_config(copied, algorithm_sha256=digest)
        load_policy(copied)
        said = f"warning: sac.py has changed since {copied} was started; its policies may act differently now"
        assert capsys.readouterr().err.splitlines() == [said] * warnings


def test_a_policy_that_cannot_be_read_is_not_called_damaged(copied, monkeypatch):
    read_bytes = Path.read_bytes

    def refuse(path):
        if path.suffix == ".npz":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match=r"policy-3\.npz"):
        load_policy(copied)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[1]", b"{" * 100_000, b"null"])
def test_a_config_that_is_none(copied, text):
    (copied / "config.json").write_bytes(text)
    assert "config.json" in refused(copied)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return eval, ("print('code ran')",)


def npz(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", members.pop("compression", zipfile.ZIP_STORED)) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def object_array():
    file = io.BytesIO()
    np.save(file, np.array([Evil()], object), allow_pickle=True)
    return file.getvalue()


def damage(content):
    """Ways in which a policy's file can be wrong, by name."""
    arrays = unpack(content)
    name = min(arrays)
    members = {name: content_of(array) for name, array in arrays.items()}
    header = members[name][:10] + re.sub(rb"\(\d+", b"(9999999999", members[name][10:])
    yield "empty", b""
    yield "cut", content[: len(content) // 2]
    yield "bit", content[:900] + bytes([content[900] ^ 1]) + content[901:]
    yield "pickle", pickle.dumps(Evil())
    yield "objects", npz(**members | {name: object_array()})
    yield "bomb", npz(**members | {name: header})
    yield "compressed", npz(**members, compression=zipfile.ZIP_DEFLATED)
    yield "other names", pack({f"{n}_": array for n, array in arrays.items()})
    yield "other dtype", pack({n: np.float64(array) for n, array in arrays.items()})
    yield "other shape", pack(arrays | {name: arrays[name][None]})
    yield "not finite", pack(arrays | {name: np.full_like(arrays[name], np.nan)})
    yield "large", content + bytes(10**6)
    for text in (
        b"-" * 9000,
        b"{'descr': '<f4",
        b"\x1b[2J(",
        b"(" * 50,
    ):  # headers that end a parser in its own way
        broken = members[name][:8] + len(text).to_bytes(2, "little") + text
        yield f"header {text[:9]}", npz(**members | {name: broken})
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("evil\x1b[2J\nname", b"")
    yield "a name", file.getvalue()


def content_of(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_damaged_foreign_or_malicious_policy(copied, capsys):
    """One line, and no code runs."""
    path = copied / "policy-3.npz"
    good = path.read_bytes()
    for name, content in damage(good):
        path.write_bytes(content)
        message = refused(copied)
        assert str(path) in message and "this run's policy" in message and message.isprintable(), name
    assert capsys.readouterr().out == ""
    path.write_bytes(good)
    load_policy(copied)


def test_a_policy_in_bfloat16(tmp_path):
    policy = {"params": jnp.full(3, 0.1, jnp.bfloat16)}
    path = tmp_path / "policy-1.npz"
    path.write_bytes(pack(policy_arrays(policy)))
    loaded = read_parameters(path, jax.eval_shape(lambda: policy))
    assert loaded["params"].dtype == jnp.bfloat16 and (loaded["params"] == policy["params"]).all()
    with pytest.raises(UsageError, match="params is .* not float32"):
        read_parameters(path, {"params": jnp.zeros(3)})


def test_flags_newer_than_the_run_have_their_defaults(copied):
    config = json.loads((copied / "config.json").read_text())
    older = {name: value for name, value in config["args"].items() if name not in ("init_from", "autotune")}
    change_config(copied, args=older)
    assert load_policy(copied).args.autotune is True


@pytest.mark.parametrize(
    "task",
    [
        Task(3, 2, False, (-0.1, 0.0), (0.4, 3.0)),
        Task(3, 1, False, (-0.1,), (0.4,), action_dtype="float64"),
        Task(4, 3, discrete=True, first_action=5),
    ],
)
def test_a_task_survives_json_and_has_the_spaces_that_it_describes(task):
    assert parse_task(json.loads(json.dumps(task._asdict()))) == task
    space = task.action_space
    described = describe_task(gym.spaces.Box(-1, 1, (task.obs_dim,)), space)
    assert described == task or task.action_dtype == "float32"
    assert described._replace(low=(), high=()) == task._replace(low=(), high=())
