"""Every k-th update: on the host and on the device, in one program or several, and in the record."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cleanrl_maxent
from cleanrl_maxent.common.errors import UsageError
from cleanrl_maxent.common.run.journal import LOSSES_EVERY
from cleanrl_maxent.common.schedule import equivalent_index, every
from tests.support.contract import CASES, record_inputs
from tests.support.runs import rows, small_args

ALGORITHMS = {
    name: module
    for name, module in cleanrl_maxent.algorithms().items()
    if hasattr(module.Args, "learning_starts")
}
DELAYED = [name for name, module in ALGORITHMS.items() if hasattr(module.Args, "policy_frequency")]


def add(state, number):
    """A change whose result tells which updates made it, and its metrics."""
    return {"sum": 3 * state["sum"] + number, "kept": state["kept"]}, {"losses/sum": state["sum"]}


@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_host_and_device_take_the_same_turns(frequency):
    """Twelve updates; the metrics are there when the host knows that the update has them."""
    on_device = jax.jit(lambda state, index, number: every(frequency, index, add, state, number))
    host = device = expected = {"sum": jnp.float32(1), "kept": jnp.arange(2)}
    for index in range(12):
        turn = index % frequency == 0
        before = float(host["sum"])
        host, metrics = every(frequency, index, add, host, index)
        device, fewer = on_device(device, index, index)
        expected = add(expected, index)[0] if turn else expected
        for state in (host, device):
            assert state.keys() == expected.keys()
            assert all(np.array_equal(state[name], expected[name]) for name in expected)
        assert metrics == ({"losses/sum": before} if turn else {})
        assert fewer == (metrics if frequency == 1 else {})
    assert on_device._cache_size() == 1


@pytest.mark.parametrize("frequencies", [(), (1,), (2,), (1, 2), (2, 3), (4, 6), (2, 3, 5), (7, 7), (1000,)])
def test_an_equivalent_index_is_divided_by_the_same_frequencies(frequencies):
    """And there are no more of them than there are sets of frequencies that divide a number."""
    indices = [*range(61), 999, 1000, 10**6]
    found = [equivalent_index(index, *frequencies) for index in indices]
    for index, number in zip(indices, found, strict=True):
        assert isinstance(number, int) and number >= 0
        assert [number % f == 0 for f in frequencies] == [index % f == 0 for f in frequencies]
    divided = {tuple(index % f == 0 for f in frequencies) for index in indices}
    assert len(set(found)) == len(divided)


def test_a_step_whose_frequency_equivalent_index_does_not_know_is_refused():
    """It would never be taken: 1, which stands for all updates then, is divided by 1 alone."""
    state = {"sum": 1, "kept": 0}
    with pytest.raises(UsageError, match="add is due every 3 updates: give that frequency to"):
        every(3, equivalent_index(4, 2), add, state, 1)
    assert every(1, equivalent_index(4), add, state, 1) == add(state, 1)
    assert every(2, equivalent_index(4, 2), add, state, 1) == add(state, 1)


def test_an_equivalent_index_of_any_two_frequencies_up_to_twelve():
    for pair in combinations(range(1, 13), 2):
        for index in range(60):
            number = equivalent_index(index, *pair)
            assert all((number % f == 0) == (index % f == 0) for f in pair)


@pytest.fixture(scope="module", params=ALGORITHMS)
def run(request, tmp_path_factory):
    """Name, indices and losses of all updates, and the rows with losses, of a short run; updates 89, 189 and
    289 are recorded, and the policy learns at every second update where it can."""
    module = ALGORITHMS[request.param]
    delays = dict(policy_frequency=2, target_network_frequency=3)
    given = {name: frequency for name, frequency in delays.items() if hasattr(module.Args, name)}
    folder = tmp_path_factory.mktemp(request.param) / "run"
    given |= dict(env_id="Pendulum-v1" if "Box" in module.Args.action_spaces else "CartPole-v1")
    given |= dict(total_timesteps=400, eval_episodes=0, checkpoint_frequency=0, run_dir=str(folder))
    args = small_args(module, **given)
    indices, losses, original_update = [], [], module.update

    def update(*given):
        state, metrics = original_update(*given)
        jax.debug.callback(losses.append, metrics)
        return state, metrics

    def noted(index, *frequencies):
        indices.append(index)
        return equivalent_index(index, *frequencies)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "update", update)
        if hasattr(module, "equivalent_index"):
            patch.setattr(module, "equivalent_index", noted)
        module.train(args)
    jax.effects_barrier()
    record = [row for row in rows(folder / "seed-1" / "metrics.jsonl") if "losses/qf1_loss" in row]
    return request.param, args, indices, losses, record


@pytest.mark.slow
def test_updates_are_counted_from_where_learning_starts(run):
    name, args, indices, losses, _ = run
    count = args.total_timesteps - args.learning_starts
    assert len(losses) == count
    assert indices in (list(range(count)), [])
    assert indices or not hasattr(ALGORITHMS[name], "equivalent_index")


@pytest.mark.slow
def test_the_record_has_the_last_known_value_of_every_loss(run):
    """The policy's are those of its own last update, which is the one before if only every second has one."""
    name, args, _, losses, record = run
    recorded = range(2 * LOSSES_EVERY, args.total_timesteps + 1, LOSSES_EVERY)
    assert [row["global_step"] for row in record] == list(recorded)
    for row in record:
        last = row["global_step"] - 1 - args.learning_starts
        known = losses[last - 1] | losses[last]
        if hasattr(ALGORITHMS[name], "actor_loss"):
            assert ("losses/actor_loss" in losses[last]) == (name not in DELAYED)
            assert "losses/actor_loss" in losses[last - 1]
        assert row.keys() - {"global_step"} == known.keys()
        for loss, value in known.items():
            assert row[loss] == pytest.approx(float(np.ravel(value)[0]), rel=1e-6), loss


@pytest.mark.parametrize("name", ["sac_discrete", "sql_discrete"])
def test_delays_count_updates_and_not_environment_steps(name, tmp_path, monkeypatch):
    """Where an update follows every fourth step, and targets move at every sixth update."""
    case = next(case for case in CASES if case.name == name)
    given = dict(train_frequency=4, target_network_frequency=6, num_seeds=1, eval_episodes=0)
    inputs = record_inputs(case, monkeypatch, case.args(**given, run_dir=str(tmp_path / "run")))
    assert len(inputs) == len(range(110, 570, 4))
    assert [index % 6 == 0 for index in inputs.indices] == [k % 6 == 0 for k in range(len(inputs))]
