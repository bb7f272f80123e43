"""Checkpoint folders: written whole or not at all, verified by SHA-256, read back by name."""
