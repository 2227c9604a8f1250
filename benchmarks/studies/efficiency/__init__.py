"""Variants of Soft Actor-Critic that need fewer steps, or are said to, and what a step of each costs."""
