"""Loaders that `tools/bench_loaders.py` compares: one adapter a library, the scenarios, the kinds of damage, and the verdicts."""
