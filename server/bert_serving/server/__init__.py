"""The server: broker, workers and gateway."""
