"""Parameters and rollouts made from a seed, and what our updates make of them, in float64."""

import json
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from cleanrl_maxent import algorithms
from cleanrl_maxent.common.data import Transition

Arrays = dict[str, np.ndarray]
PLAIN: dict[str, Any] = dict(
    norm_adv=False, normalize_observation=False, normalize_reward=False, log_std_init=-0.5
)


class Case(NamedTuple):
    """An update of ours, and the peer's update that it is compared with."""

    flags: dict[str, Any]  # ours
    package: str
    settings: dict[str, Any]  # theirs
    optimizer: dict[str, Any]  # theirs


PPO = Case(
    dict(num_envs=4, num_steps=32, update_epochs=3, num_minibatches=4, ent_coef=0.01)
    | dict(learning_rate=1e-3, anneal_lr=False, max_grad_norm=1e9),
    "stable_baselines3",
    dict(n_steps=32, batch_size=32, n_epochs=3, ent_coef=0.01, learning_rate=1e-3, gae_lambda=0.95)
    | dict(vf_coef=0.5, max_grad_norm=1e9, normalize_advantage=False),
    dict(eps=1e-5),
)
A2C = Case(
    dict(num_envs=4, num_steps=5, anneal_lr=False, max_grad_norm=1e9),
    "stable_baselines3",
    dict(n_steps=5, learning_rate=7e-4, gae_lambda=1.0, ent_coef=0.01, vf_coef=0.5, max_grad_norm=1e9),
    dict(eps=1e-5, alpha=0.99),
)
TRPO = Case(
    dict(num_envs=4, num_steps=64, update_epochs=3, num_minibatches=4, cg_damping=1e-3, target_kl=0.1),
    "sb3_contrib",
    dict(n_steps=64, batch_size=64, n_critic_updates=3, cg_max_steps=10, gae_lambda=0.97)
    | dict(normalize_advantage=False, cg_damping=1e-3, target_kl=0.1),
    dict(eps=2e-5),  # its critic's loss is twice ours
)
CASES = {"ppo": PPO, "a2c": A2C, "trpo": TRPO}
OBS_DIM, ACTION_DIM = 11, 3  # Hopper-v4's


def their_settings(name: str, discrete: bool) -> dict[str, Any]:
    """The peer's settings; sb3-contrib averages a Gaussian's KL over action dimensions, where we sum."""
    settings = CASES[name].settings
    if name == "trpo" and not discrete:
        settings = settings | {n: settings[n] / ACTION_DIM for n in ("cg_damping", "target_kl")}
    return settings


def make_rollout(
    algorithm: ModuleType, state: Any, args: Any, discrete: bool, rng: np.random.Generator
) -> Any:
    """Random steps with terminations and truncations, also in the last row, and actions of the policy.

    Observations and actions are rounded to float32, in which the peer's code passes them on.
    """
    shape = args.num_steps, args.num_envs

    def normal(*dims: int) -> np.ndarray:
        return rng.normal(size=dims).astype(np.float32).astype(np.float64)

    steps = normal(args.num_steps + 1, args.num_envs, OBS_DIM)
    terminated, truncated = rng.random((2, *shape)) < 0.1
    terminated[-1, 0], truncated[-1, 0], terminated[-1, 1], truncated[-1, 1] = True, False, False, True
    ended = terminated | truncated
    next_obs = np.where(ended[..., None], normal(*shape, OBS_DIM), steps[1:])
    key = jax.random.key(int(rng.integers(2**31)))
    action = np.asarray(algorithm.act(algorithm.policy(state), steps[:-1], key, False))
    action = action if discrete else action.astype(np.float32).astype(np.float64)
    transition = Transition(
        obs=steps[:-1],
        action=action,
        reward=normal(*shape),
        next_obs=next_obs,
        terminated=terminated.astype(float),
    )
    return algorithm.Rollout(transition, ended.astype(float), np.ones(shape))


def make_order(key: jax.Array, args: Any, flags: dict[str, Any]) -> np.ndarray:
    """The minibatches of `update`, `(pass, row)`, with rows numbered as the peer numbers them."""
    count = args.steps_per_update
    passes = flags.get("update_epochs", 1)
    order = jax.numpy.tile(jax.numpy.arange(count), (passes, 1))
    if passes > 1:
        order = jax.random.permutation(key, order, axis=1, independent=True)
    step, env = np.divmod(np.asarray(order), args.num_envs)
    theirs = env * args.num_steps + step
    whole = np.arange(count)[None]  # TRPO's policy takes a rollout at once
    return np.concatenate([whole, theirs]) if "critic_lr" in vars(args) else theirs


def their_names(actor: Any, critic: Any) -> Arrays:
    """Our parameters under the peer's names and in its layout."""
    actor, critic = actor["params"], critic["params"]
    last = "mean" if "mean" in actor else "logits"
    layers = {"action_net": actor[last], "value_net": critic["Dense_2"]}
    for number, module in enumerate((0, 2)):
        layers[f"mlp_extractor.policy_net.{module}"] = actor[f"Dense_{number}"]
        layers[f"mlp_extractor.value_net.{module}"] = critic[f"Dense_{number}"]
    named = {"log_std": actor["log_std"]} if "log_std" in actor else {}
    for name, layer in layers.items():
        named |= {f"{name}.weight": layer["kernel"].T, f"{name}.bias": layer["bias"]}
    return {name: np.array(value) for name, value in named.items()}


def random_state(algorithm: ModuleType, args: Any, discrete: bool, rng: np.random.Generator) -> Any:
    """A fresh state in float64, with every parameter moved away from where it starts."""
    task = SimpleNamespace(obs_dim=OBS_DIM, action_dim=ACTION_DIM, discrete=discrete)
    state = algorithm.init(jax.random.key(args.seed), task, args)

    def moved(network: Any) -> Any:
        params = jax.tree.map(lambda x: np.asarray(x, float) + 0.1 * rng.normal(size=x.shape), network.params)
        return network.replace(params=params, opt_state=network.tx.init(params))

    return state.replace(actor=moved(state.actor), critic=moved(state.critic))


def learn(
    name: str, discrete: bool, seed: int, rollouts: int
) -> tuple[Arrays, Arrays, list[dict[str, float]]]:
    """The peer's input, what our updates make of the same input, and our metrics."""
    case, algorithm = CASES[name], algorithms()[name]
    args = algorithm.Args(seed=seed, **PLAIN, **case.flags)
    rng = np.random.default_rng(seed)
    state = random_state(algorithm, args, discrete, rng)
    describe = {
        "package": case.package,
        "settings": their_settings(name, discrete),
        "optimizer": case.optimizer,
        "algorithm": name.upper(),
        "spaces": (OBS_DIM, ACTION_DIM, discrete),
        "num_envs": args.num_envs,
        "rollouts": rollouts,
    }
    before = their_names(state.actor.params, state.critic.params)
    given = {"case": np.array(json.dumps(describe))} | {f"before/{n}": x for n, x in before.items()}
    results, metrics, update = {}, [], jax.jit(algorithm.update, static_argnums=(3, 4))
    for number in range(rollouts):
        rollout, key = make_rollout(algorithm, state, args, discrete, rng), jax.random.key(number)
        fields = ("obs", "action", "reward", "next_obs", "terminated")
        given |= {f"{number}/{n}": np.asarray(getattr(rollout.transition, n)) for n in fields}
        given |= {f"{number}/ended": rollout.ended, f"{number}/order": make_order(key, args, case.flags)}
        samples = algorithm.make_samples(state, rollout, args)
        found = {n: np.array(getattr(samples, n)) for n in ("advantage", "value_target")}
        found = {n: x.reshape(rollout.ended.shape) for n, x in found.items()}
        if name == "trpo":
            full, unravel = (
                algorithm.natural_step(state, samples, args)[0],
                ravel_pytree(state.actor.params)[1],
            )
            step = their_names(unravel(full), state.critic.params)
            found |= {f"direction/{n}": x for n, x in step.items() if "value" not in n}
        state, measured = update(state, rollout, key, number, args)
        metrics.append({n: float(x) for n, x in measured.items()})
        found |= {f"after/{n}": x for n, x in their_names(state.actor.params, state.critic.params).items()}
        results |= {f"{number}/{n}": x for n, x in found.items()}
    return given, results, metrics
