"""A local store pickles as its configuration, for a new process (`multiprocessing`, "spawn")."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ...clock import Clock

__all__ = ["as_configuration"]


def as_configuration(store: object, path: Path, clock: Clock) -> tuple[Callable[[], object], tuple[()]]:
    """What the store's `__reduce__` returns: unpickling or copying makes a new store, closed, over `path`.

    Raises TypeError if the clock cannot be pickled.
    """
    kind: Callable[..., object] = type(store)
    try:
        pickle.dumps(clock)
    except Exception as error:  # pickle, and the clock's own code, may raise anything
        raise TypeError(
            f"This {type(store).__name__} can be neither pickled nor copied, because its clock "
            f"({type(clock).__name__}) cannot be pickled. Make a store in the other process, or pass a clock "
            "that can be pickled."
        ) from error
    return partial(kind, str(path), clock=clock), ()
