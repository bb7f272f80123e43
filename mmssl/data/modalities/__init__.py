"""Modalities: image, audio, video, text and label. Bytes to values, values to views (tensors). Imports no shards."""
