"""Decoding of texts, one token at a time."""
