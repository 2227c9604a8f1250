"""A run: its start, its folder, its record, its checkpoints, its line on the screen, its result."""
