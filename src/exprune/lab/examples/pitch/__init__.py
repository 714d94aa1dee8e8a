"""Pitch detection: CREPE, and synthetic tones for it."""
