"""Owns every request from its arrival to its reply."""
