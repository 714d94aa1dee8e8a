"""Text: networks that predict its tokens, and two-choice questions."""
