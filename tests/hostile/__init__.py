"""Hostile neighbours, garbage, killed processes and long runs against a real server, and their judges."""
