"""`async with store`, for every store."""

from __future__ import annotations

from types import TracebackType
from typing import Self

__all__ = ["ClosesAtExit"]


class ClosesAtExit:
    """`async with` it, and it is closed at the end."""

    async def aclose(self) -> None:
        """Close it."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        """The store itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it: see `aclose`."""
        await self.aclose()
