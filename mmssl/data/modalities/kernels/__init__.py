"""Synchronized augmentation kernels of the modalities of this package, one file for each kind of value."""
