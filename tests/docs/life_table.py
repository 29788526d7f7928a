"""Write the table in docs/concepts/life-of-a-token.md from the fields of `Policy`.

python tests/docs/life_table.py
"""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from pathlib import Path

from tokensession import Policy

PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "life-of-a-token.md"
BEGIN = "<!-- policy: written by tests/docs/life_table.py -->"
END = "<!-- end of policy -->"


def table() -> str:
    """A row for each setting, in the order of the class."""
    rows = ["| setting | default | what it is | why |", "|---|---|---|---|"]
    for setting in fields(Policy):
        value = setting.default
        assert isinstance(value, int | float)
        part = setting.name.endswith(("_fraction", "_jitter"))
        shown = _fraction(value) if part else f"{value:g} s"
        what, why = setting.metadata["what"], setting.metadata["why"]
        rows.append(f"| `{setting.name}` | {shown} | {what} | {why} |")
    return "\n".join(rows)


def _fraction(value: float) -> str:
    fraction = Fraction(value).limit_denominator(100)
    return f"{fraction.numerator}/{fraction.denominator}"


def written(page: str) -> str:
    """The page with the table in it."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
