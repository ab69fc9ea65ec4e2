"""Unit, model, service, client and GPU tests, and what they share (support)."""
