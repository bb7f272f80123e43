"""Rewriting captions: when their sample is mirrored or reversed (sides, order), or to make them false (words)."""
