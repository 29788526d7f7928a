"""Hypothesis draws the same inputs in every run, so a failure is caused by your change and not by chance.

For fresh inputs: `pytest --hypothesis-profile=default`.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")
