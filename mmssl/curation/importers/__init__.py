"""Formats of data sets that `mmssl shards pack` reads: one file each, and their registry."""
