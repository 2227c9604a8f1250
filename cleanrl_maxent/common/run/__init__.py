"""A run: its start, folder, record, checkpoints, line on the screen, and result."""
