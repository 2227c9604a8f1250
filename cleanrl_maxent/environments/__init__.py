"""This project's own environments, registered with Gymnasium when `cleanrl_maxent` is imported.

They are named `cleanrl_maxent/TwoRooms-v0` and so on. `gym.make` takes the keyword arguments of `MultiGoal`
and, for the others, of the functions in `finite.py` that build their MDPs.
"""

import gymnasium as gym

from cleanrl_maxent.environments.multigoal import MAX_EPISODE_STEPS

FINITE = "cleanrl_maxent.environments.finite"

gym.register("cleanrl_maxent/TwoRooms-v0", f"{FINITE}:TwoRooms")
gym.register("cleanrl_maxent/Corridor-v0", f"{FINITE}:Corridor")
gym.register("cleanrl_maxent/RandomMDP-v0", f"{FINITE}:RandomMDP", max_episode_steps=100)
gym.register(
    "cleanrl_maxent/MultiGoal-v0",
    "cleanrl_maxent.environments.multigoal:MultiGoal",
    max_episode_steps=MAX_EPISODE_STEPS,
)
