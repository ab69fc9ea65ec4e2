"""Benchmarks. Start one in the root of the repository with `python -m benchmarks.NAME`.

The benchmarks share common.py and device.py. They use the running server, the small models and the
sentences of tests/support.
"""
