"""Captions, answers and dialogue about images."""
