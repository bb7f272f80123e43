"""Encoders of timm, open_clip and transformers."""
