"""Semantic change: what each changed place was and what it became."""
