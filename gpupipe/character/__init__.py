"""character."""
