"""Benchmarks that measure side by side. Run one with python -m benchmarks.NAME; common and device are shared.

Run it from the repository's root: the benchmarks use tests/support for a started server, small models and sentences.
"""
