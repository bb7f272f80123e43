"""Image, audio, video, text and label: bytes to values, values to views. Knows no shard."""
