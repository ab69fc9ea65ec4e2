"""Nothing here opens a socket, sleeps or reads a clock; the same examples are tried on every run."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("unit")
