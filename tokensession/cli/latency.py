"""The latencies of any number of requests, in a few hundred bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

__all__ = ["Latencies"]

_STEP = math.log(1.02)  # a bin is 2 % wide, which is less than two runs differ
_FLOOR = 1e-6  # seconds


class Latencies:
    """A histogram with bins 2 % wide. It can be sent as JSON and added up over processes."""

    def __init__(self, bins: Mapping[str, int] | None = None) -> None:
        self._bins: Counter[int] = Counter()
        self.merge(bins or {})

    def add(self, seconds: float) -> None:
        """Count one request."""
        self._bins[int(math.log(max(seconds, _FLOOR) / _FLOOR) / _STEP)] += 1

    def merge(self, bins: Mapping[str, int]) -> None:
        """Add the counts of another process."""
        for name, count in bins.items():
            self._bins[int(name)] += count

    def bins(self) -> dict[str, int]:
        """The counts, for JSON and `merge`."""
        return {str(index): count for index, count in self._bins.items()}

    def quantile(self, share: float) -> float:
        """The latency in milliseconds that this share of all requests did not exceed. 0 without requests."""
        wanted = math.ceil(share * self._bins.total())
        for index in sorted(self._bins):
            wanted -= self._bins[index]
            if wanted <= 0:
                return round(1000 * _FLOOR * math.exp((index + 0.5) * _STEP), 3)
        return 0.0
