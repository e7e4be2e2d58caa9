"""Hypothesis draws the same examples on every run and machine, and measures no time."""

from hypothesis import settings

settings.register_profile("house", derandomize=True, deadline=None, database=None)
settings.load_profile("house")
