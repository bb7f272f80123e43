"""Corruptions of evaluation views, at five severities: pictures, clips, sounds and sentences."""
