"""The command line: `tokensession demo` and `tokensession serve`. Needs the extra `cli`."""

from __future__ import annotations

import importlib
import sys

__all__ = ["main"]

_MISSING = 2  # exit status: the command cannot run


def main() -> None:
    """The console script. Without click or rich it says how to install them, and exits with status 2."""
    for name in ("click", "rich"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            print(
                f"tokensession: the command line needs {name}. Install it: pip install 'tokensession[cli]'",
                file=sys.stderr,
            )
            raise SystemExit(_MISSING) from None
    from .commands import cli

    cli(prog_name="tokensession")
