"""Pitch: CREPE, and tones that are made for it."""
