"""The `triton` engine."""
