"""The worker process, which runs one model on one device."""
