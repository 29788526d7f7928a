"""Write the tables in docs/concepts/life-of-a-token.md: the fields of `Policy`, and `CONSEQUENCES`.

python tests/docs/life_table.py
"""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

from _pages import ROOT, with_tables

from tokensession import Policy
from tokensession._refresh.outcomes import CONSEQUENCES

PAGE = ROOT / "docs" / "concepts" / "life-of-a-token.md"
COUNTS = ("requests_per_hour",)


def outcomes() -> str:
    """A row for each kind of error, in the order of the table in `outcomes.py`."""
    rows = ["| what happened | error | then | all processes wait |", "|---|---|---|---|"]
    for kind, line in CONSEQUENCES.items():
        then = f"{'spends; ' if line.spends else ''}pause: {line.pause.value}"
        rows.append(f"| {line.when} | `{kind.__name__}` | {then} | {'yes' if line.shared else 'no'} |")
    return "\n".join(rows)


def table() -> str:
    """A row for each setting, in the order of the class."""
    rows = ["| setting | default | what it is | why |", "|---|---|---|---|"]
    for setting in fields(Policy):
        value = setting.default
        assert isinstance(value, int | float)
        part = setting.name.endswith(("_fraction", "_jitter"))
        shown = _fraction(value) if part else f"{value:g}" if setting.name in COUNTS else f"{value:g} s"
        what, why = setting.metadata["what"], setting.metadata["why"]
        rows.append(f"| `{setting.name}` | {shown} | {what} | {why} |")
    return "\n".join(rows)


def _fraction(value: float) -> str:
    fraction = Fraction(value).limit_denominator(100)
    return f"{fraction.numerator}/{fraction.denominator}"


def written(page: str) -> str:
    """The page with the tables in it."""
    return with_tables(page, "life_table.py", {"policy": table(), "outcomes": outcomes()})


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
