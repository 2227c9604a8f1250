"""Updates of Stable-Baselines3 and sb3-contrib on given rollouts, for `compare.py`.

Runs in the peer's own Python environment, so it imports nothing of ours:

    python benchmarks/studies/peers/peer.py case.npz updates.npz

Reads parameters and rollouts, and writes advantages, targets of V, and the parameters after each update, all
float64. It learns with the peer's own `train()`, on the peer's own rollout buffer, which is filled by hand.
Only these are replaced: the random draws (the order of minibatches and the start of conjugate gradient), the
tolerance of conjugate gradient, and a cast to float32.
"""

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np

Arrays = dict[str, np.ndarray]


class Spaces(gymnasium.Env):
    """An environment with spaces only, which is all that a model needs before the first step."""

    def __init__(self, obs_dim: int, action_dim: int, discrete: bool):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float64)
        box = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float64)
        self.action_space = gymnasium.spaces.Discrete(action_dim) if discrete else box


def make_model(case: dict[str, Any], parameters: Arrays) -> Any:
    """The peer's model in float64 with these parameters."""
    vec_env, logger, tf_like = (
        importlib.import_module(f"stable_baselines3.common.{name}")
        for name in ("vec_env", "logger", "sb2_compat.rmsprop_tf_like")
    )
    envs = vec_env.DummyVecEnv([lambda: Spaces(*case["spaces"])] * case["num_envs"])
    kwargs: dict[str, Any] = {"optimizer_kwargs": case["optimizer"]}
    if case["algorithm"] == "A2C":
        kwargs["optimizer_class"] = tf_like.RMSpropTFLike
    make = getattr(importlib.import_module(case["package"]), case["algorithm"])
    model = make("MlpPolicy", envs, device="cpu", policy_kwargs=kwargs, **case["settings"])
    model.set_logger(logger.configure(format_strings=[]))
    model.policy.double()
    # the model casts observations to float32, to which they were rounded before; this casts them back
    model.policy.features_extractor.register_forward_hook(lambda module, given, features: features.double())
    torch = importlib.import_module("torch")
    model.policy.load_state_dict({name: torch.from_numpy(value) for name, value in parameters.items()})
    return model


def fill(model: Any, rollout: Arrays) -> None:
    """Fills the model's buffer as `collect_rollouts` does; arrays `(num_steps, num_envs, ...)`, float64."""
    torch = importlib.import_module("torch")
    buffer, ended, action = model.rollout_buffer, rollout["ended"], rollout["action"]
    shape = ended.shape

    def flat(name: str) -> Any:
        return torch.from_numpy(rollout[name].reshape(-1, *rollout[name].shape[2:]))

    with torch.no_grad():
        values, log_probs, _ = model.policy.evaluate_actions(flat("obs"), flat("action"))
        next_values = model.policy.predict_values(flat("next_obs")).numpy().reshape(shape)
    buffer.reset()
    buffer.observations, buffer.actions = rollout["obs"], action.reshape(*shape, -1)
    buffer.values, buffer.log_probs = values.numpy().reshape(shape), log_probs.numpy().reshape(shape)
    truncated = ended * (1 - rollout["terminated"])
    buffer.rewards = rollout["reward"] + model.gamma * truncated * next_values
    buffer.episode_starts = np.concatenate([np.zeros_like(ended[:1]), ended[:-1]])
    buffer.advantages = np.zeros(shape)
    buffer.compute_returns_and_advantage(torch.from_numpy(next_values[-1]), ended[-1])
    buffer.full = True


@contextmanager
def replaced(module: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Replaces an attribute of a module inside the context."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def agreed(order: np.ndarray) -> Iterator[list[Any]]:
    """Minibatches in this order, `(pass, row)`; conjugate gradient from 0, without a tolerance.

    Yields the solutions of conjugate gradient.
    """
    torch, contrib = (importlib.import_module(name) for name in ("torch", "sb3_contrib.trpo.trpo"))
    solver, passes, solutions = contrib.conjugate_gradient_solver, iter(order), []

    def solve(*args: Any, **kwargs: Any) -> Any:
        solutions.append(solver(*args, residual_tol=0.0, **kwargs))
        return solutions[-1]

    with (
        replaced(np.random, "permutation", lambda count: next(passes)),
        replaced(torch, "randn_like", torch.zeros_like),
        replaced(contrib, "conjugate_gradient_solver", solve),
    ):
        yield solutions


def parameters_of(model: Any) -> Arrays:
    return {name: value.detach().numpy().copy() for name, value in model.policy.named_parameters()}


def actor_parts(model: Any, vector: np.ndarray) -> Arrays:
    """A flat vector in the actor's parameters, by name."""
    parts = {}
    for name, parameter in model.policy.named_parameters():
        if "value" not in name:
            parts[name], vector = np.split(vector, [parameter.numel()])
            parts[name] = parts[name].reshape(parameter.shape)
    return parts


def updates(given: Arrays) -> Arrays:
    """Everything that `compare.py` compares; names begin with the number of the rollout."""

    def below(prefix: str) -> Arrays:
        return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}

    case, results = json.loads(str(given["case"])), {}
    model = make_model(case, below("before/"))
    for number in range(case["rollouts"]):
        rollout = below(f"{number}/")
        fill(model, rollout)
        found = {"advantage": model.rollout_buffer.advantages, "value_target": model.rollout_buffer.returns}
        with agreed(rollout["order"]) as solutions:
            model.train()
        found |= {f"after/{name}": value for name, value in parameters_of(model).items()}
        for solution in solutions:
            found |= {f"direction/{n}": x for n, x in actor_parts(model, solution.numpy()).items()}
        results |= {f"{number}/{name}": value.copy() for name, value in found.items()}
    return results


def main() -> None:
    """Reads the one file and writes the other."""
    parser = argparse.ArgumentParser(description="A peer's updates on given rollouts.")
    parser.add_argument("case", help="parameters and rollouts, .npz")
    parser.add_argument("updates", help="where the results go, .npz")
    args = parser.parse_args()
    with np.load(args.case) as given:
        np.savez(args.updates, **updates(dict(given)))  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
