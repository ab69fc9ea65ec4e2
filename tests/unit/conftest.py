"""Unit tests open no socket and do not sleep. Hypothesis tries the same examples on every run."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("unit")
