"""What to load, and what the files of a model say. No torch: the server process asks before any worker exists."""
