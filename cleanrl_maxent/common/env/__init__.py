"""The environments of every seed: made and checked, stepped, and restored exactly."""
