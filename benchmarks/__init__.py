"""Benchmarks. Start one in the root of the repository with `python -m benchmarks.NAME`.

The benchmarks share common.py and device.py. From tests/support they take a running server, small models and
sentences.
"""
