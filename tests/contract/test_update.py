"""`init`, `policy`, `act` and `update` of one seed: pure functions of pytrees, in a small run."""

from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.training.train_state import TrainState

from cleanrl_maxent.common.run.start import split_keys
from tests.support.contract import record_inputs
from tests.support.references import assert_close
from tests.support.runs import rows


@pytest.fixture(scope="session")
def args(case, tmp_path_factory):
    """Those of a run of three seeds whose record ends with an evaluation."""
    folder = tmp_path_factory.mktemp("updates") / "run"
    given = dict(num_seeds=3, total_timesteps=310, eval_frequency=310, checkpoint_frequency=0)
    return case.args(**given, run_dir=str(folder))


@pytest.fixture(scope="session")
def inputs(case, args):
    """What the updates of that run are given."""
    with pytest.MonkeyPatch.context() as patch:
        return record_inputs(case, patch, args)


@pytest.fixture(scope="session")
def init(case, args):
    """New states of seeds, compiled."""
    return jax.jit(jax.vmap(lambda key: case.module.init(key, case.task, args)))


@pytest.fixture(scope="session")
def states(init):
    """Those of three seeds."""
    return init(jax.random.split(jax.random.key(0), 3))


@pytest.fixture(scope="session")
def acts(case, states):
    """`act`, compiled, and a policy for it."""
    act = using_keys_once(jax.jit(case.module.act, static_argnums=3))
    return act, case.module.policy(last(states))


@pytest.fixture(scope="session")
def among(case, args):
    """`update` of all seeds, compiled; the device decides about every k-th update."""

    def update(index, *given):
        return case.module.update(*given, index, args)

    return jax.jit(jax.vmap(update, (None, 0, 0, 0)))


@pytest.fixture(scope="session")
def alone(case, args, inputs):
    """`update` of one seed, compiled; the host decides about every k-th update, if it does so in a run."""
    static = 0 if inputs.on_host else ()
    update = jax.jit(lambda index, *given: case.module.update(*given, index, args), static_argnums=static)
    return using_keys_once(update)


def using_keys_once(function):
    """The function; where it draws twice from one key, it raises JAX's `KeyReuseError`.

    Not for `update` of all seeds: JAX raises this also for a scan over keys in a `vmap`.
    """

    def call(*given):
        with jax.debug_key_reuse(True):
            return function(*given)

    return call


def last(tree):
    return jax.tree.map(lambda leaf: leaf[-1], tree)


def same_bits(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def assert_finite_arrays(tree):
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert isinstance(leaf, jax.Array), f"{name} is no array"
        assert np.isfinite(leaf).all(), f"{name} is not finite"


def test_a_state_is_made_of_finite_arrays_and_the_key_alone_tells_states_apart(case, init, states):
    assert_finite_arrays(states)
    assert same_bits(states, init(jax.random.split(jax.random.key(0), 3)))
    first, *_, other = (case.module.policy(jax.tree.map(lambda leaf, i=i: leaf[i], states)) for i in range(3))
    assert not same_bits(first, other)


def test_targets_begin_as_copies(states):
    for name, target in vars(states).items():
        if name.startswith("target_"):
            learned = getattr(states, name.removeprefix("target_")).params
            assert same_bits(target, learned), f"{name} does not begin as a copy"


def test_no_two_layers_begin_alike(states):
    """Neither in one network nor in two, two critics for example: each is drawn from its own key."""
    learned = [part.params for part in vars(last(states)).values() if isinstance(part, TrainState)]
    kernels = [
        np.asarray(kernel)
        for path, leaf in jax.tree_util.tree_leaves_with_path(learned)
        if jax.tree_util.keystr(path).endswith("['kernel']")
        for kernel in leaf.reshape(-1, *leaf.shape[-2:])  # critics lead with their number
    ]
    assert len({(kernel.shape, kernel.tobytes()) for kernel in kernels}) == len(kernels)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("batch", [(), (64,)], ids=["one", "batch"])
def test_actions_have_their_shape_and_type(case, acts, batch, deterministic):
    act, policy = acts
    assert_finite_arrays(policy)
    obs = 10 * jax.random.normal(jax.random.key(1), (*batch, case.task.obs_dim))
    action = act(policy, obs, jax.random.key(2), deterministic)
    if case.task.discrete:
        assert action.shape == batch and jnp.issubdtype(action.dtype, jnp.integer)
        assert ((action >= 0) & (action < case.task.action_dim)).all()
    else:
        assert action.shape == (*batch, case.task.action_dim) and action.dtype == jnp.float32
        assert jnp.isfinite(action).all()


def test_a_deterministic_policy_ignores_the_key_and_a_stochastic_one_does_not(case, args, inputs, acts):
    """What a run records as `eval/` is deterministic; as `eval_stochastic/`, drawn anew for every row."""
    (act, policy), record = acts, rows(f"{args.run_dir}/seed-1/metrics.jsonl")
    names = set().union(*record)
    assert names & {"eval/return_mean", "eval_stochastic/return_mean"}
    obs = jax.random.normal(jax.random.key(1), (64, case.task.obs_dim))
    if "eval/return_mean" in names:
        one, other = (act(policy, obs, jax.random.key(key), True) for key in (2, 3))
        assert np.array_equal(one, other)
        assert np.allclose(one[7], act(policy, obs[7], jax.random.key(4), True), atol=1e-6)
    if "eval_stochastic/return_mean" in names:
        same_obs = jnp.broadcast_to(obs[:, None], (64, *obs.shape))
        one, same, other = (act(policy, same_obs, jax.random.key(key), False) for key in (2, 2, 3))
        assert np.array_equal(one, same) and not np.array_equal(one, other)
        assert any(len(np.unique(rows, axis=0)) > 1 for rows in one)


def test_alone_and_among_others_on_host_and_device_an_update_is_the_same(
    case, args, inputs, states, among, alone
):
    """For every kind of update that a run has: its number is a Python int, or traced by JAX, which leaves
    metrics of it out."""
    given = states, inputs.data[0], inputs.keys[0]
    for index in sorted(set(inputs.indices)) if inputs.on_host else (0,):
        (state, metrics), (others, fewer) = alone(index, *last(given)), among(index, *given)
        assert_close(last(others), state, 1e-6)
        assert fewer.keys() <= metrics.keys()
        assert_close(last(fewer), {name: metrics[name] for name in fewer}, 1e-6)
        assert same_bits(state, alone(index, *last(given))[0])
    shapes = jax.eval_shape(lambda *given: case.module.update(*given, 0, args), *last(given))
    assert metrics.keys() <= shapes[1].keys() and jax.tree.structure(shapes[0]) == jax.tree.structure(state)


def test_an_update_keeps_the_shapes_and_measures_finite_scalars(inputs, states, alone):
    given = last((states, inputs.data[0], inputs.keys[0]))
    state, metrics = alone(max(inputs.indices) if inputs.on_host else 0, *given)
    assert_finite_arrays((state, metrics))
    assert jax.tree.structure(state) == jax.tree.structure(given[0])
    for before, after in zip(*map(jax.tree.leaves, (given[0], state)), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    assert not same_bits(given[0], state)
    assert metrics and all(name.startswith("losses/") and x.shape == () for name, x in metrics.items())


@pytest.mark.slow
def test_one_seed_alone_stays_that_seed_among_others(inputs, states, among, alone):
    """Over all updates, each from what the one before left; and one program is enough for all of them."""
    assert len(inputs) >= 5
    state = last(states)
    for index, data, keys in zip(inputs.indices, inputs.data, inputs.keys, strict=True):
        states, _ = among(index, states, data, keys)
        state, _ = alone(index, state, *last((data, keys)))
    assert_close(last(states), state, 1e-3)
    assert_finite_arrays(state)
    assert among._cache_size() == 1


def bytes_of(tree):
    """All numbers of a pytree, as float32."""
    return b"".join(np.float32(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def rows_of(transition):
    """Every transition as bytes."""
    count = np.size(transition.reward)
    columns = [np.float32(leaf).reshape(count, -1) for leaf in jax.tree.leaves(transition)]
    return {row.tobytes() for row in np.concatenate(columns, axis=1)}


def of_each_seed(tree):
    """The pytrees of the seeds, whose axis comes first."""
    return [jax.tree.map(itemgetter(seed), tree) for seed in range(3)]


def test_an_update_learns_from_what_the_environments_did(case, args, inputs):
    """From a rollout of all steps in order, or from rows of one seed's replay.

    Within an update, the inputs of the seeds are recorded in any order.
    """
    if hasattr(inputs.data[0], "elapsed"):
        shape = args.num_steps, args.num_seeds, args.num_envs

        def stacked(*leaves):
            return np.stack(leaves).reshape(*shape, *leaves[0].shape[1:]).swapaxes(0, 1)

        for number, rollout in enumerate(inputs.data):
            steps = inputs.played[number * args.num_steps : (number + 1) * args.num_steps]
            given = rollout.transition, rollout.ended, rollout.elapsed
            expected, found = (
                set(map(bytes_of, of_each_seed(tree))) for tree in (jax.tree.map(stacked, *steps), given)
            )
            assert expected == found and len(found) == 3
            if hasattr(rollout, "u"):
                action = rollout.u if case.task.discrete else np.tanh(rollout.u)
                assert np.allclose(rollout.transition.action, action, atol=1e-6)
        return
    played = [of_each_seed(transition) for transition, *_ in inputs.played]
    known = [set().union(*map(rows_of, of_seed)) for of_seed in zip(*played, strict=True)]
    for data in inputs.data:
        batches = map(rows_of, of_each_seed(data))
        sources = [[seed for seed in range(3) if batch <= known[seed]] for batch in batches]
        assert sorted(sources) == [[0], [1], [2]]


def test_no_two_updates_share_a_key_or_their_data(inputs):
    """Neither two of one seed nor those of two seeds."""
    keys = np.concatenate([jax.random.key_data(keys) for keys in inputs.keys])
    batches = [bytes_of(batch) for data in inputs.data for batch in of_each_seed(data)]
    assert len(np.unique(keys, axis=0)) == len(set(batches)) == len(batches) == 3 * len(inputs)


def test_streams_of_keys_are_apart():
    """Four for each of three seeds; those of seed 2 do not depend on the others."""
    data, alone = (
        np.stack([jax.random.key_data(key) for key in split_keys(jnp.array(seeds))])
        for seeds in ([0, 1, 2], [2])
    )
    assert len(np.unique(data.reshape(12, 2), axis=0)) == 12 and np.array_equal(data[:, 2:], alone)
