"""Finite Markov decision processes whose optima `tabular.py` computes, and their Gymnasium environments."""

from typing import NamedTuple

import gymnasium as gym
import numpy as np


class MDP(NamedTuple):
    """A finite Markov decision process with S states and A actions; every array is float64.

    `P`: `(S, A, S)`, probability of the next state; what a row lacks to 1 ends the episode.
    `R`: `(S, A)`, reward. `start`: `(S,)`, probability of the first state.
    """

    P: np.ndarray
    R: np.ndarray
    start: np.ndarray


def two_rooms(num_actions=8, left_reward=1.0, right_reward=0.5, penalty=1.0):
    """A short trip into one of two rooms, where a single action follows.

    State 0 is the start, without reward: the first half of the actions lead to the left room (state 1), the
    others to the right one (state 2). On the left action 0 pays `left_reward` and every other costs
    `penalty`; on the right all pay `right_reward`. Raises ValueError for an odd number of actions.
    """
    return corridor(1, num_actions, left_reward, right_reward, penalty)


def corridor(depth=10, num_actions=8, left_reward=1.0, right_reward=0.85, penalty=1.0):
    """The two rooms with `depth` steps in each: states 1 … depth on the left, the rest on the right.

    On the left only action 0 succeeds, on the right every action does. Raises ValueError for an odd number of
    actions, or a depth below 1.
    """
    if num_actions < 2 or num_actions % 2 or depth < 1:
        raise ValueError(
            f"an even number of actions and a depth of 1 or more are needed, not {num_actions} and {depth}"
        )
    states = 1 + 2 * depth
    P, R = np.zeros((states, num_actions, states)), np.zeros((states, num_actions))
    left, right = np.arange(1, states).reshape(2, depth)
    P[0, : num_actions // 2, left[0]] = 1
    P[0, num_actions // 2 :, right[0]] = 1
    for branch in (left, right):
        P[branch[:-1], :, branch[1:]] = 1  # the last state leads nowhere: the episode ends
    R[left] = -penalty
    R[left, 0] = left_reward
    R[right] = right_reward
    return MDP(P, R, np.eye(states)[0])


def random_mdp(seed=0, num_states=5, num_actions=3, end_probability=0.0):
    """Next states uniform on the simplex (Dirichlet), rewards standard normal, every state a start.

    `seed`: of the MDP, not of its episodes. `end_probability`: chance that a step ends the episode,
    whatever the state and action.
    """
    rng = np.random.default_rng(seed)
    P = (1 - end_probability) * rng.dirichlet(np.ones(num_states), size=(num_states, num_actions))
    return MDP(P, rng.normal(size=(num_states, num_actions)), np.full(num_states, 1 / num_states))


class FiniteEnv(gym.Env):
    """An MDP as an environment: the state is observed as a one-hot vector, `(S,)` float32; discrete actions.

    When an episode ends, the observation is that of the last state.
    """

    def __init__(self, mdp: MDP):
        self.mdp = mdp
        num_states, num_actions = mdp.R.shape
        self.observation_space = gym.spaces.Box(0, 1, (num_states,), np.float32)
        self.action_space = gym.spaces.Discrete(num_actions)

    def observe(self):
        """The state as a one-hot vector, `(S,)` float32."""
        return np.eye(len(self.mdp.start), dtype=np.float32)[self.state]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.choice(len(self.mdp.start), p=self.mdp.start))
        return self.observe(), {}

    def step(self, action):
        reward = float(self.mdp.R[self.state, action])
        cumulative = np.cumsum(self.mdp.P[self.state, action])
        next_state = int(np.searchsorted(cumulative, self.np_random.random(), side="right"))
        terminated = next_state == len(cumulative)  # the draw fell into what the row lacks to 1
        if not terminated:
            self.state = next_state
        return self.observe(), reward, terminated, False, {}


class TwoRooms(FiniteEnv):
    """The environment of `two_rooms`, whose arguments it takes."""

    def __init__(self, **constants):
        super().__init__(two_rooms(**constants))


class Corridor(FiniteEnv):
    """The environment of `corridor`, whose arguments it takes."""

    def __init__(self, **constants):
        super().__init__(corridor(**constants))


class RandomMDP(FiniteEnv):
    """The environment of `random_mdp`, whose arguments it takes."""

    def __init__(self, **constants):
        super().__init__(random_mdp(**constants))
