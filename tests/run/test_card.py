"""The model card of a finished run, and its way to a hub: tried offline alone."""

import json
import re
import shlex
import socket
import sys
from dataclasses import fields, replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tyro
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

import cleanrl_maxent
from cleanrl_maxent import enjoy, sac
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run import card, hub
from cleanrl_maxent.common.run.card import model_card
from tests.support.runs import SMALL

CONFIG = {
    "versions": {"python": "3.11.7", "jax": "0.10.2", "mujoco": None},
    "device": {"platform": "cpu", "kind": "cpu", "processor": "Some CPU"},
    "git_commit": "abc-dirty",
}


def make_result(*rows):
    """What `result.json` holds, a row of (mean, std) by mode for each seed."""
    evaluations = {
        str(seed): {
            f"{mode}/{name}": value
            for mode, pair in row.items()
            for name, value in zip(("return_mean", "return_std"), pair, strict=True)
        }
        for seed, row in enumerate(rows, 1)
    }
    return {"evaluations": evaluations, "total_timesteps": 1000, "seconds": 1234.5}


RESULT = make_result({"eval": (10.0, 1.0), "eval_stochastic": (7.0, 2.0)})


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command(args):
    """The words of the command in a card that trains again."""
    return shlex.split(blocks(model_card(args, CONFIG, RESULT), "bash")[1])


@pytest.fixture
def of_run(run):
    """The card of a run of two seeds."""
    folder, result = run
    args = sac.Args(**SMALL, seed=3, num_seeds=2, run_dir=str(folder))
    return model_card(args, json.loads((folder / "config.json").read_text()), result)


def test_the_hub_understands_the_front_matter(of_run, run):
    data = ModelCard(of_run).data
    assert data.library_name == "cleanrl_maxent" and {"Pendulum-v1", "sac"} <= set(data.tags)
    (found,) = data.eval_results
    assert (data.model_name, found.task_type) == ("sac", "reinforcement-learning")
    assert (found.dataset_name, found.metric_type) == ("Pendulum-v1", "mean_reward")
    returns = [row["eval/return_mean"] for row in run[1]["evaluations"].values()]  # of one episode each
    assert found.metric_value == f"{np.mean(returns):.2f} +/- {np.std(returns):.2f}"


def test_mean_and_deviation_are_those_of_all_episodes():
    episodes = np.array([[1.0, 3.0], [4.0, 10.0]])
    rows = [{"eval": (row.mean(), row.std())} for row in episodes]
    assert card.mean_reward(make_result(*rows)) == pytest.approx((episodes.mean(), episodes.std()))
    assert card.mean_reward(make_result({"eval_stochastic": (3.0, 2.0)})) == (3.0, 2.0)
    assert card.mean_reward(make_result({}, {})) is None


def test_scores_of_every_seed_and_mode():
    result = make_result(
        {"eval": (1234.56, 1.0), "eval_stochastic": (7.0, 2.0)},
        {"eval": (-3.0, 0.5)} | {"eval_stochastic": (0.0, 0.0)},
    )
    text = model_card(sac.Args(num_seeds=2, eval_episodes=7), CONFIG, result)
    assert (
        "| seed | deterministic | sampled |\n|---|---|---|\n| 1 | 1,234.6 ± 1.0 | 7.0 ± 2.0 |\n| 2 | -3.0"
        in text
    )
    assert "over 7 episodes" in text and "each of the seeds 1, 2" in text
    text = model_card(sac.Args(eval_episodes=0), CONFIG, make_result({}))
    assert "It was not evaluated." in text and "model-index" not in text and "| seed" not in text
    text = model_card(sac.Args(), CONFIG, make_result({"eval_stochastic": (7.0, 2.0)}))
    assert "| seed | sampled |" in text and "deterministic" not in text


def test_what_it_says_of_the_machine():
    text = model_card(sac.Args(), CONFIG, RESULT)
    assert "python 3.11.7, jax 0.10.2 on Some CPU in 1,234 s, git commit `abc-dirty`" in text
    assert "mujoco" not in text and sac.Args.__doc__ in text
    gpu = CONFIG | {"device": {"platform": "gpu", "kind": "H100", "processor": "x"}, "git_commit": None}
    assert "on H100 in 1,234 s. All flags" in model_card(sac.Args(), gpu, RESULT)


def test_its_code_runs_in_the_folder(of_run, run, monkeypatch):
    monkeypatch.chdir(run[0])
    (code,) = blocks(of_run, "python")
    variables = {"obs": np.zeros(3, np.float32)}
    exec(code, variables)
    assert variables["action"].shape == (1,) and variables["policy"].seed == 3
    watch = shlex.split(blocks(of_run, "bash")[0])
    assert watch[:3] == ["python", "-m", "cleanrl_maxent.enjoy"]
    assert tyro.cli(enjoy.Args, args=watch[3:]).run_dir == "."


def unlike_defaults(module):
    """Arguments none of which is the default, except those that stay out of the command."""
    given = {}
    for field in fields(module.Args):
        value = field.default
        if field.name in card.LEFT_OUT:
            continue
        elif isinstance(value, bool):
            given[field.name] = not value
        elif isinstance(value, int):
            given[field.name] = value + 1
        elif isinstance(value, float):
            given[field.name] = value / 3
        elif isinstance(value, tuple):
            given[field.name] = (8, 9)
    return module.Args(
        **given, env_id="my_module:It's-v0", exp_name='of "a", $x', init_from="a b", device="cpu"
    )


@pytest.mark.parametrize("name", cleanrl_maxent.algorithm_names())
def test_the_command_gives_the_same_arguments(name):
    module = cleanrl_maxent.algorithms()[name]
    args = unlike_defaults(module)
    words = command(args)
    assert words[:3] == ["python", "-m", f"cleanrl_maxent.{name}"]
    assert tyro.cli(module.Args, args=words[3:]) == args
    assert command(module.Args()) == words[:3]


def test_an_environment_of_the_users_own_is_named():
    text = model_card(sac.Args(env_id="my_envs:Balance-v0"), CONFIG, RESULT)
    assert (
        "## Watch it\n\nThe environment's module, `my_envs`, must be in this folder or installed.\n\n```"
        in text
    )
    assert "environment's module" not in model_card(sac.Args(), CONFIG, RESULT)


def test_the_command_leaves_out_places_and_accounts():
    args = sac.Args(run_dir="/home/me", track=True, wandb_entity="me", hf_entity="me", upload_model=True)
    assert command(args) == ["python", "-m", "cleanrl_maxent.sac"]
    negative = sac.Args(target_entropy_scale=-0.5)
    assert tyro.cli(sac.Args, args=command(negative)[3:]) == negative


def test_a_file_outside_the_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "delayed_sac.py").write_text(
        "from dataclasses import dataclass\n"
        "from cleanrl_maxent import sac\n"
        "@dataclass(frozen=True)\n"
        "class Args(sac.Args):\n"
        "    delay: int = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import delayed_sac  # pyright: ignore[reportMissingImports]

    text = model_card(delayed_sac.Args(delay=4), CONFIG, RESULT)
    watch, train = blocks(text, "bash")
    assert train == "python delayed_sac.py --delay 4\n"
    assert watch == "python -m cleanrl_maxent.enjoy . --algorithm delayed_sac.py\n"
    assert 'load_policy(".", seed=1, algorithm="delayed_sac.py")' in text
    assert "`delayed_sac.py`, the algorithm's file, which you must put here, are all" in text
    assert "Args(env_id" not in text  # the docstring that dataclass makes


def test_names_cannot_leave_their_place():
    """Quotes, colons and line ends stay inside the texts of the front matter."""
    name = "a\": [}\n- {b: 'c' # d é 目"
    data = ModelCard(model_card(sac.Args(env_id=name, exp_name=name.replace("\n", " ")), CONFIG, RESULT)).data
    assert data.eval_results[0].dataset_name == name and name in data.tags
    assert data.model_name == name.replace("\n", " ")


def test_films_are_shown():
    text = model_card(sac.Args(), CONFIG, RESULT, ["videos/a b.gif", "videos/c.mp4"])
    assert "![videos/a b.gif](videos/a%20b.gif)" in text and '<video src="videos/c.mp4" controls>' in text


@pytest.fixture
def offline(monkeypatch):
    """The library in its offline mode, with a token; whoever asks for an address fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("a test wants the network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


SHARED = sac.Args(upload_model=True, hf_entity="me")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "me/Hopper-v4-sac-seed1"),
        (dict(num_seeds=4, seed=3), "me/Hopper-v4-sac-seed3-6"),
        (dict(env_id="my_module:A/B-v0"), "me/my_module_A_B-v0-sac-seed1"),
        (dict(exp_name="sac--two é..x -"), "me/Hopper-v4-sac-two_.x_-seed1"),
        (dict(env_id="_x-", exp_name="-"), "me/_x-seed1"),
    ],
)
def test_the_name_on_the_hub_is_one_that_it_takes(given, name):
    assert hub.repo_id(replace(SHARED, **given)) == name
    validate_repo_id(name)


def test_what_would_fail_is_said_before_training(offline, monkeypatch):
    hub.check_hub(SHARED)
    for args, words in (
        (replace(SHARED, hf_entity=None), "needs --hf-entity"),
        (replace(SHARED, hf_entity="me/you"), "does not accept this name"),
        (replace(SHARED, exp_name="x" * 90), "does not accept this name"),
    ):
        with pytest.raises(UsageError, match=words):
            hub.check_hub(args)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UsageError, match="hf auth login"):
        hub.check_hub(SHARED)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'cleanrl_maxent\[hub\]'"):
        hub.check_hub(SHARED)
    hub.check_hub(replace(SHARED, upload_model=False, hf_entity=None))


def test_a_failed_upload_is_one_line_with_the_command_for_later(offline, run, capsys):
    hub.upload(run[0], SHARED)
    (line,) = capsys.readouterr().out.splitlines()
    warning, later = line.split("; later: ")
    assert warning.startswith("warning: not uploaded: ") and "offline" in warning
    program, *words = shlex.split(later)
    assert (program, *words[:2]) == ("python", "-m", "cleanrl_maxent.sac")
    again = tyro.cli(sac.Args, args=words[2:])
    assert (again.resume, again.upload_model, again.hf_entity) == (str(run[0]), True, "me")


def test_later_names_the_users_file_from_here(offline, run, capsys, monkeypatch):
    """The file need not lie in the current folder."""
    monkeypatch.setattr(hub, "is_ours", lambda args: False)
    hub.upload(run[0], SHARED)
    _, later = capsys.readouterr().out.split("; later: ")
    _, file, *_ = shlex.split(later)
    assert Path(file).resolve() == Path(sac.__file__).resolve()


class Hub:
    """In the place of the library's client: notes what is asked of it."""

    def __init__(self, **kwargs):
        self.calls = []

    def create_repo(self, name, exist_ok):
        self.calls.append((name, exist_ok))
        return f"hub/{name}"

    def upload_folder(self, **given):
        self.calls.append(given)


def test_what_is_uploaded(run, tmp_path, monkeypatch, capsys):
    """All that loads, shows and describes the run; no checkpoint; the records if they are short."""
    client = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **kwargs: client)
    folder = Path(run[0])
    hub.upload(folder, SHARED)
    (name, exist_ok), given = client.calls
    assert (name, exist_ok, given["folder_path"]) == ("me/Hopper-v4-sac-seed1", True, folder)
    assert capsys.readouterr().out == f"uploaded to hub/{name}\n"
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    files += ["README.md", "videos/step-100.gif", "wandb/README.md", "checkpoint/policy-1.npz"]

    def uploaded():
        return set(filter_repo_objects(files, allow_patterns=hub.upload_patterns(folder)))

    records = {"seed-3/metrics.jsonl", "seed-4/metrics.jsonl"}
    others = {
        "README.md",
        "config.json",
        "result.json",
        "policy-3.npz",
        "policy-4.npz",
        "videos/step-100.gif",
    }
    assert uploaded() == records | others
    monkeypatch.setattr(hub, "LONGEST_RECORDS", 1000)
    assert uploaded() == others
