"""Siblings line up, so that the diff between two of them is the second one's paper."""

import subprocess
from typing import NamedTuple

import pytest

from tests.support.tree import PACKAGE, defined


class Pair(NamedTuple):
    """Two files, how many lines their diff may have, and which functions and classes it takes and brings."""

    before: str
    after: str
    removed: int
    added: int
    without: str = ""
    new: str = ""


NATURAL = "surrogate kl_divergence fisher_vector_product conjugate_gradient natural_step line_search"
PAIRS = [
    Pair("ddpg", "td3", 28, 45),
    Pair("td3", "sac", 67, 78, "next_noise", "sample_action temperature alpha_loss"),
    Pair(
        *("sac", "sql", 95, 146),
        "sample_action temperature alpha_loss improve_policy",
        "reward_scale repeat soft_value sample_particles log_density lower_median stein_direction",
    ),
    Pair("sac", "sac_v1", 64, 77, "temperature alpha_loss improve_policy", "reward_scale Value value_loss"),
    Pair(
        *("sac", "crossq", 61, 150),
        "linear move_targets",
        "BatchRenorm NormalizedLinear sample_squashed Network",
    ),
    Pair("sac", "sac_discrete", 61, 85, new="gather reduce_critics"),
    Pair(
        *("sql", "sql_discrete", 175, 169),
        "reward_scale Actor repeat sample_particles log_density lower_median stein_direction actor_loss",
        "Policy gather sample_action double_value bellman_target policy_entropy epsilon",
    ),
    Pair(
        *("sac_discrete", "sql_discrete", 111, 141),
        "Actor temperature reduce_critics actor_loss alpha_loss improve_policy",
        "Policy soft_value double_value bellman_target policy_entropy epsilon",
    ),
    Pair(
        *("sql_discrete", "fitted_q", 139, 115),
        "double_value policy_entropy move_targets epsilon",
        "warn_of_divergence",
    ),
    Pair("reinforce", "a2c", 97, 50, "past_rewards step_mask fit_critic"),
    Pair("a2c", "a3c", 20, 64, new="Worker synchronize worker_state"),
    Pair(
        *("a2c", "trpo", 50, 138, "actor_loss"),
        f"{NATURAL} fit_critic",
    ),
    Pair(
        *("trpo", "ppo", 114, 84),
        f"{NATURAL} fit_critic",
        "actor_loss adapt_kl_coef",
    ),
    Pair(
        *("ppo", "maxent_pg", 84, 137),
        "Gaussian adapt_kl_coef",
        "TanhGaussian sample_action temperature alpha_loss adapt_temperature",
    ),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.before}-{pair.after}")
def test_the_diff_of_siblings_is_the_paper(pair):
    files = [PACKAGE / f"{name}.py" for name in pair[:2]]
    command = ["git", "diff", "--no-index", "--numstat", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    added, removed, _ = done.stdout.split(maxsplit=2)
    assert int(removed) <= pair.removed and int(added) <= pair.added, (removed, added)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.before}-{pair.after}")
def test_siblings_have_the_same_functions_in_the_same_order(pair):
    before, after = (defined(PACKAGE / f"{name}.py") for name in pair[:2])
    assert set(before) - set(after) == set(pair.without.split())
    assert set(after) - set(before) == set(pair.new.split())
    assert [name for name in before if name in after] == [name for name in after if name in before]
