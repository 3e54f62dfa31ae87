"""Captions, questions and answers, dialogue."""
