"""Bytes of samples, by number: tar files, their index and sidecars, storage, cache and salvage. Knows no modality."""
