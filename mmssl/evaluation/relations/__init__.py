"""How the modalities of a model relate: which of them lie together, what it confuses, and which relations it tells apart."""
