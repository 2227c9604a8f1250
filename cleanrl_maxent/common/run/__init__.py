"""A run: its start, folder, record, checkpoints, status line, and result."""
