"""Folders of embeddings: written in constant memory, indexed, and searched."""
