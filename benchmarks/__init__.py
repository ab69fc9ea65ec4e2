"""Benchmarks that measure side by side. Start one in the repository's root: `python -m benchmarks.NAME`.

common.py and device.py hold what they share. They also use tests/support, for a started server, small models and
sentences.
"""
