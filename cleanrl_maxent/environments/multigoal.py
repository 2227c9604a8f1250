"""A point in the plane and four goals, the example of soft Q-learning.

Dynamics and rewards are those of the code that Haarnoja et al. published with their paper of 2017,
https://arxiv.org/abs/1702.08165; a figure of the paper describes a different reward.
"""

import gymnasium as gym
import numpy as np

from cleanrl_maxent.environments.canvas import Canvas

GOALS = np.array([[5.0, 0], [-5, 0], [0, 5], [0, -5]])
BOUND = 7.0  # of positions, in each dimension
MAX_EPISODE_STEPS = 30  # of cleanrl_maxent/MultiGoal-v0

PICTURE = 320  # pixels of a side
PAPER, GOAL, INK, FADED = (250, 249, 245), (46, 139, 122), (217, 83, 39), (120, 130, 150)  # colours


class MultiGoal(gym.Env):
    """A point at p, moved to p + a until it is at a goal; p is observed; both `(2,)` float32.

    A step's reward is -`action_cost` ‖a‖² - `distance_cost` ‖p - g‖² for the new position p and the goal g
    nearest to it, plus `goal_reward` if ‖p - g‖ < `goal_radius`, which ends the episode. Positions
    are clipped to ±BOUND, actions to [-1, 1]; the first position is drawn from N(0, `init_sigma`²). As
    cleanrl_maxent/MultiGoal-v0 an episode is cut off after MAX_EPISODE_STEPS. With `render_mode` "rgb_array",
    `render` draws the goals, the path of the episode and, faintly, the paths of earlier ones.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(
        self,
        action_cost: float = 30.0,
        distance_cost: float = 1.0,
        goal_reward: float = 10.0,
        goal_radius: float = 1.0,
        init_sigma: float = 0.1,
        render_mode: str | None = None,
    ):
        self.action_cost, self.distance_cost = action_cost, distance_cost
        self.goal_reward, self.goal_radius, self.init_sigma = goal_reward, goal_radius, init_sigma
        self.observation_space = gym.spaces.Box(-BOUND, BOUND, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.render_mode = render_mode
        if render_mode:
            self.canvas = draw_goals(goal_radius)  # and earlier paths
            self.path: list[np.ndarray] = []  # positions of this episode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = np.clip(self.init_sigma * self.np_random.normal(size=2), -BOUND, BOUND)
        if self.render_mode:
            draw_path(self.canvas, self.path, FADED, opacity=0.35)
            self.path = [self.position]
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.position, reward, reached = self.move(self.position, np.asarray(action, float))
        if self.render_mode:
            self.path.append(self.position)
        return self.position.astype(np.float32), float(reward), bool(reached), False, {}

    def move(self, position, action):
        """The new position, the reward and whether a goal is reached; shapes `(..., 2)`, `(...)`, `(...)`."""
        action = np.clip(action, -1, 1)
        position = np.clip(position + action, -BOUND, BOUND)
        squared_distance = np.sum((position[..., None, :] - GOALS) ** 2, axis=-1).min(axis=-1)
        reached = squared_distance < self.goal_radius**2
        cost = self.action_cost * np.sum(action**2, axis=-1) + self.distance_cost * squared_distance
        return position, self.goal_reward * reached - cost, reached

    def render(self):
        """The frame of this step, `(PICTURE, PICTURE, 3)` uint8."""
        canvas = self.canvas.copy()
        draw_path(canvas, self.path, INK, opacity=0.9)
        canvas.disc(self.position, 0.36, PAPER)
        canvas.disc(self.position, 0.26, INK)
        return canvas.image()


def draw_goals(goal_radius):
    """A canvas with the goals: an episode ends inside the inner disc; the rings are at distances 2 and 3."""
    canvas = Canvas(PICTURE, BOUND, PAPER)
    for radius, opacity in [(3.0, 0.08), (2.0, 0.08), (goal_radius, 0.75)]:
        for goal in GOALS:
            canvas.disc(goal, radius, GOAL, opacity)
    return canvas


def draw_path(canvas, path, color, opacity):
    """Draws lines from position to position, each `(2,)`."""
    for start, end in zip(path[:-1], path[1:], strict=True):
        canvas.line(start, end, 0.12, color, opacity)
