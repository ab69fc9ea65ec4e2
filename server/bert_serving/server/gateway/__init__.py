"""The HTTP processes."""
