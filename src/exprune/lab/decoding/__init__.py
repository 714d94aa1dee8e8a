"""Decoding a text one token at a time."""
