"""Checkpoint folders: written atomically, verified by SHA-256, read back by name."""
