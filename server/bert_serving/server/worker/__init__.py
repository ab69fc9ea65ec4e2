"""The model processes."""
