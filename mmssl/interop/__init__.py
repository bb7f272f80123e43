"""Floor 2: other libraries' checkpoints, both ways."""
