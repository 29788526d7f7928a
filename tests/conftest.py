"""What every test has: the same inputs each time.

A red run is then about the change, and not about luck. Other inputs: `pytest --hypothesis-profile=default`.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.load_profile("same")
