"""Variants of Soft Actor-Critic whose networks start from other weights."""
