"""What to load, and what a model's files contain. Never imports torch: the server process uses this package."""
