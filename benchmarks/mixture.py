"""Soft Q-learning with a soft value from other proposals: half uniform, half near the sampler's own actions.

    python benchmarks/mixture.py --env-id HalfCheetah-v4 --total-timesteps 100000 --exp-name sql-mixture

Flags are those of cleanrl_maxent/sql.py; docs/sql.md has what came of it.
"""

import jax
from particles import mixture_value

from cleanrl_maxent import sql
from cleanrl_maxent.common.arguments import run_from_command_line


def soft_value(state, obs, action_dim, key, args):
    """V(s) of the targets, `(batch,)`, as `sql.soft_value`; the Gaussian is fitted to as many samples of the
    sampler as there are proposals.
    """
    samples_key, key = jax.random.split(key)
    samples = sql.sample(state.actor.params, sql.repeat(obs, args.value_particles), samples_key)

    def log_q(action):
        rows = sql.repeat(obs, action.shape[1])
        return state.critics.apply_fn(state.target_critics, rows, action).min(axis=0) / args.alpha

    return args.alpha * mixture_value(log_q, samples, key, args.value_particles)


if __name__ == "__main__":
    sql.soft_value = soft_value
    run_from_command_line(sql.Args, sql.train)
