"""Decoding and encoding of audio and video files: containers, windows of sound and of frames. Imports no shards."""
