"""Files of sound and moving pictures: containers, windows of sound and frames, encoding. Knows no shard."""
