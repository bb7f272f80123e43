"""Floor 5: embeddings and searches over HTTP, for this machine."""
