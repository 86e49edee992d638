"""Docstrings for Sphinx: ours are prose with code in backticks; what reStructuredText would read into it is escaped."""

import re

CODE = re.compile(r"(`+[^`]+`+)")
SPECIAL = re.compile(r"([\\*|_:])")


def process(_app, _what, _name, _object, _options, lines: list[str]) -> None:
    """Rewrite a docstring's lines in place (signature of Sphinx's event `autodoc-process-docstring`)."""
    lines[:] = as_rst("\n".join(lines)).split("\n")


def as_rst(text: str) -> str:
    """reStructuredText that shows a docstring as written: paragraphs, indented or bulleted lines kept as they are."""
    paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    return "\n\n".join(_block(paragraph.split("\n")) for paragraph in paragraphs) + "\n"


def _block(lines: list[str]) -> str:
    listed = any(re.match(r"\s+\S|\s*([-*]|\d+\.)\s", line) for line in lines)
    if listed:  # a line block keeps line ends and indents
        return "\n".join(f"| {_line(line)}" for line in lines)
    return "\n".join(_line(line) for line in lines)


def _line(line: str) -> str:
    parts = CODE.split(line)
    return "".join(f"``{p.strip('`')}``" if i % 2 else SPECIAL.sub(r"\\\1", p) for i, p in enumerate(parts))
