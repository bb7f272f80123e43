"""Rewriting captions when their sample is mirrored or reversed: sides, order, and word lists."""
