"""Modalities: image, audio, video, text, label, array, series: bytes to values, and what each declares. Imports no shards."""
