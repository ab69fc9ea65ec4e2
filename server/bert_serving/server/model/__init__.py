"""What a model folder holds and says. No torch: the server process asks before any worker exists."""
