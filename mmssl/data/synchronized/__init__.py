"""Synchronized augmentation: one draw of parameters for all modalities of a sample, which keeps their relation."""
