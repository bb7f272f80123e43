"""Masks of tokens as views, so that they do not depend on workers or processes."""
