"""Change between dates."""
