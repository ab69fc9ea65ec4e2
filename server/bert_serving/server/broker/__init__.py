"""Owns every request between its arrival and its reply."""
