"""Embeddings and searches over HTTP, for this machine."""
