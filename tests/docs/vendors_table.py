"""Write the tables of the vendors in docs/reference/providers.md, from `VENDORS`.

python tests/docs/vendors_table.py
"""

from __future__ import annotations

from _pages import ROOT, with_tables

from tokensession.providers import VENDORS, Vendor, encode_json

PAGE = ROOT / "docs" / "reference" / "providers.md"


def vendors() -> str:
    """A row for each vendor: what its strategy says."""
    rows = [
        "| name | vendor | regions | body | client | refresh tokens | means 401 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, vendor in VENDORS.items():
        strategy = vendor.strategy
        cells = (
            f"`{name}`",
            vendor.title,
            ", ".join(f"`{region}`" for region in vendor.hosts if region) or "one",
            "JSON" if strategy.encode is encode_json else "form",
            "Basic" if vendor.auth.method == "basic" else "in the body",
            rotation(vendor),
            ", ".join(map(str, strategy.unauthorized_statuses)),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def rotation(vendor: Vendor) -> str:
    strategy = vendor.strategy
    if not strategy.rotates:
        return "stay valid"
    minutes = strategy.replay_leeway / 60
    long = f"{minutes / 60:g} h" if minutes > 60 else f"{minutes:g} min"
    leeway = f", with {long} of leeway" if minutes else ""
    idle = f"; end after {strategy.idle_lifetime / 86400:g} idle days" if strategy.idle_lifetime else ""
    return f"rotate{leeway}{idle}"


def facts() -> str:
    """A row for each fact, with a link to its source."""
    rows = ["| vendor | fact | source |", "|---|---|---|"]
    for name, vendor in VENDORS.items():
        for number, fact in enumerate(vendor.facts):
            source = f"[{fact.how}](https://{fact.where})" if fact.where else fact.how
            rows.append(f"| {'' if number else f'`{name}`'} | {fact.text} | {source} |")
    return "\n".join(rows)


def written(page: str) -> str:
    """The page with both tables in it."""
    return with_tables(page, "vendors_table.py", {"vendors": vendors(), "facts": facts()})


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
