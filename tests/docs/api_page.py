"""Writes docs/reference/api.md from the docstrings of the doors.

.venv/bin/python tests/docs/api_page.py

griffe reads the source: signatures, annotations, docstrings, and what `__all__` names. It runs nothing, so
the page is the same on every Python. This file only decides how the page looks.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "api.md"
MODULES = [
    "tokensession",
    "tokensession.events",
    *(f"tokensession.{d}" for d in ("providers", "grants", "stores", "testing")),
]

HEAD = """# The public interface

Every public name, and what it promises. Import a name from the module of its section. Names that are not on
this page may change in any release: see [Stability](../concepts/stability.md).

This page is generated from the docstrings: `.venv/bin/python tests/docs/api_page.py`.
"""
WIDTH = 100  # characters; a longer signature gets a line for each parameter
_TEXT = r"(?:'[^']*'|\"[^\"]*\")"
PLAIN = {
    rf"_setting\(([^,]+), {_TEXT}, {_TEXT}\)": r"\1",  # of `Policy`: the default alone
    r"\(lambda: (\w+)\)\(\)": r"\1",
    r"\b_wire\.": "",
    r"\b_STANDARD_FIELDS\b": "Fields()",
    r"\b_EXPIRES_IN\b": "expires_in('expires_in')",
    r"\b_no_headers\b": "lambda values: ()",
    r"= _INTERVAL\b": "= 5.0",
    r"\b_BODY_SECRETS\b": "('client_secret', 'password', ...)",
    r"\bfield\(default_factory=dict, hash=False\)": "{}",
    r"\bfield\(default=\(\), compare=False\)": "()",
    r"\bfield\(default='', repr=False\)": "''",
    r"(\*\*kwargs): Unpack\[\w+\]": r"\1",  # aiohttp's own, whose type is private there
}
"""What a signature shows instead of private names."""


def page() -> str:
    """The whole page."""
    package = griffe.load("tokensession", search_paths=[ROOT])
    contents = [f"- [`{name}`](#{name.replace('.', '')})" for name in MODULES]
    lines = [HEAD, *contents, ""]
    for name in MODULES:
        lines += section(package if name == "tokensession" else package[name.removeprefix("tokensession.")])
    return "\n".join(lines).rstrip() + "\n"


def section(module: griffe.Module) -> Iterator[str]:
    """One door: its docstring, then what `__all__` names, each under a heading."""
    yield from (f"## {module.path}", "", text(module), "")
    for name in map(str, module.exports or ()):
        member = module[name]
        target = member.final_target if member.is_alias else member
        if target.is_module and name in target.members:  # a function in a module of the same name
            target = target[name]
        if target.is_module:
            anchor = target.path.replace(".", "")
            yield from (f"### {name}", "", f"The module [`{target.path}`](#{anchor}).", "")
        else:
            yield from described(target, "###", name)


def described(member: griffe.Object, level: str, heading: str) -> Iterator[str]:
    """A class, a function or an attribute, and what is public inside it."""
    yield from (f"{level} {heading}", "", "```py", code(member), "```", "")
    if member.docstring:
        yield from (text(member), "")
    if member.is_class:
        public = [one for one in member.members.values() if not one.name.startswith("_")]
        attributes = [one for one in public if one.is_attribute]
        # A field without a docstring is in the signature already.
        rows = [row(one) for one in attributes if one.docstring or (not is_field(one) and one.annotation)]
        yield from (*rows, *([""] if rows else []))
        for one in public:
            if one.is_function:
                yield from described(one, level + "#", f"{member.name}.{one.name}")


def code(member: griffe.Object) -> str:
    """The signature, as it is written in Python."""
    if member.is_function:
        start = "async def" if "async" in member.labels else "def"
        return folded(plain(f"{start} {member.signature()}"))
    if member.is_class:
        bases = [str(base) for base in member.bases]
        takes_nothing = bool({"Protocol", "ABC", "Enum"} & set(bases)) or is_error(member)
        if takes_nothing or "__init__" not in member.all_members:
            return f"class {member.name}({', '.join(bases)})" if bases else f"class {member.name}"
        return folded(f"class {plain(member.signature())}")
    return f"{member.name}: {member.annotation}" if member.annotation else member.name


def plain(signature: str) -> str:
    """A signature without the private names behind its defaults."""
    for private, public in PLAIN.items():
        signature = re.sub(private, public, signature)
    return signature


def is_field(member: griffe.Object) -> bool:
    """Whether this is a parameter of its dataclass."""
    return "dataclass" in member.parent.labels and "property" not in member.labels


def is_error(member: griffe.Object) -> bool:
    return any("Error" in str(base) or "Warning" in str(base) for base in member.bases) or any(
        is_error(base) for base in member.resolved_bases
    )


def folded(signature: str) -> str:
    """A long signature over several lines."""
    signature = signature.replace("self, ", "").replace("(self)", "()")
    if len(signature) <= WIDTH:
        return signature
    opening, closing = signature.index("("), signature.rindex(")")
    parts, depth, part = [], 0, ""
    for character in signature[opening + 1 : closing]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += character
    inside = "".join(f"    {each},\n" for each in [*parts, part.strip()])
    return f"{signature[: opening + 1]}\n{inside}{signature[closing:]}"


def row(member: griffe.Object) -> str:
    """An attribute, a property or a field."""
    said = " ".join(text(member).split())
    name = plain(f"{member.name}: {member.annotation}") if member.annotation else member.name
    return f"- `{name}`{': ' + said if said else ''}"


def text(member: griffe.Object) -> str:
    """A docstring as Markdown. An indented block after `::` becomes a fenced one."""
    if not member.docstring:
        return ""
    block = re.compile(r"(?m)::\n\n((?:(?: {4}.*)?\n)*(?: {4}.*))")
    said: str = member.docstring.value
    return block.sub(lambda found: f":\n\n```text\n{textwrap.dedent(found[1])}\n```", said)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
