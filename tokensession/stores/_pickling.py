"""A store pickles as its configuration, for a new process (`multiprocessing`, "spawn")."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..clock import Clock

__all__ = ["as_configuration", "check_parts"]


def as_configuration(store: object, path: Path, clock: Clock) -> tuple[Callable[[], object], tuple[()]]:
    """What the `__reduce__` of a store on this machine returns: unpickling or copying makes a new store,
    closed, over `path`.

    Raises TypeError if the clock cannot be pickled.
    """
    kind: Callable[..., object] = type(store)
    check_parts(store, clock=clock)
    return partial(kind, str(path), clock=clock), ()


def check_parts(store: object, **parts: object) -> None:
    """Raises TypeError if one of these parts of the store's configuration cannot be pickled."""
    for name, part in parts.items():
        try:
            pickle.dumps(part)
        except Exception as error:  # pickle, and the part's own code, may raise anything
            raise TypeError(
                f"This {type(store).__name__} can be neither pickled nor copied, because its {name} "
                f"({type(part).__name__}) cannot be pickled. Make a store in the other process, or pass "
                f"{name} that can be pickled."
            ) from error
