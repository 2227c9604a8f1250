"""A point in the plane and four goals, the example of soft Q-learning.

Dynamics and rewards are those of the code that Haarnoja et al. published with their paper of 2017,
https://arxiv.org/abs/1702.08165, whose own figure describes another reward.
"""

import gymnasium as gym
import numpy as np

GOALS = np.array([[5.0, 0], [-5, 0], [0, 5], [0, -5]])
BOUND = 7.0  # of positions, in each dimension
MAX_EPISODE_STEPS = 30  # of cleanrl_maxent/MultiGoal-v0


class MultiGoal(gym.Env):
    """A point at p, moved to p + a until it is at a goal; p is observed; both `(2,)` float32.

    A step's reward is -`action_cost` ‖a‖² - `distance_cost` ‖p - g‖² for the new position p and the goal g
    nearest to it, and `goal_reward` more where ‖p - g‖ < `goal_radius`, which ends the episode. Positions
    are clipped to ±BOUND, actions to [-1, 1]; the first position is drawn from N(0, `init_sigma`²). As
    cleanrl_maxent/MultiGoal-v0 an episode is cut off after MAX_EPISODE_STEPS.
    """

    def __init__(
        self,
        action_cost: float = 30.0,
        distance_cost: float = 1.0,
        goal_reward: float = 10.0,
        goal_radius: float = 1.0,
        init_sigma: float = 0.1,
    ):
        self.action_cost, self.distance_cost = action_cost, distance_cost
        self.goal_reward, self.goal_radius, self.init_sigma = goal_reward, goal_radius, init_sigma
        self.observation_space = gym.spaces.Box(-BOUND, BOUND, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = np.clip(self.init_sigma * self.np_random.normal(size=2), -BOUND, BOUND)
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.position, reward, reached = self.move(self.position, np.asarray(action, float))
        return self.position.astype(np.float32), float(reward), bool(reached), False, {}

    def move(self, position, action):
        """The new position, the reward and whether a goal is reached; shapes `(..., 2)`, `(...)`, `(...)`."""
        action = np.clip(action, -1, 1)
        position = np.clip(position + action, -BOUND, BOUND)
        squared_distance = np.sum((position[..., None, :] - GOALS) ** 2, axis=-1).min(axis=-1)
        reached = squared_distance < self.goal_radius**2
        cost = self.action_cost * np.sum(action**2, axis=-1) + self.distance_cost * squared_distance
        return position, self.goal_reward * reached - cost, reached
