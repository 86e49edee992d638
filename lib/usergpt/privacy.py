"""Masks what may identify or harm a person before a text is shown, saved or sent: addresses, numbers, keys.

Masking is by pattern, so names and street addresses stay: tables and figures show labels and shares, and excerpts are
short. A cluster of fewer conversations than a stated minimum is not shown at all (`clusters.py`).
"""

import re

PATTERNS: tuple[tuple[str, str], ...] = (
    ("key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
    ("key", r"\b(?:sk|pk|rk)[-_](?:live|test|proj|ant)?[-_]?[A-Za-z0-9_-]{16,}"),
    ("key", r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,})"),
    ("key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}|\bhf_[A-Za-z0-9]{20,}"),
    ("key", r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"),
    ("key", r"(?i)(?<=bearer )[\w.~+/-]{16,}=*"),
    ("key", r"(?i)\b(?:(?:api|secret|access|private|auth)[-_ ]?(?:key|token)|passw(?:or)?d|pwd|secret|token)"
            r"[\"']?\s*[:=]\s*[\"']?(?!\[)[^\s\"',;]{6,}"),
    ("e-mail", r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    ("address", r"\b(?:\d{1,3}\.){3}\d{1,3}\b"),
    ("number", r"(?<![\d.])\b(?:\d[ -]?){13,16}\b|\b\d{3}-\d{2}-\d{4}\b"),
    ("phone", r"(?<![\w.,/-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])\d{3,4}[ .-]\d{3,4}(?![\w,-]|\.\d)"),
    ("phone", r"(?<![\w.])\+\d[\d .()-]{7,16}\d(?!\w)"),
    ("key", r"\b(?=[A-Za-z0-9_-]*\d)(?=[A-Za-z0-9_-]*[A-Za-z])[A-Fa-f0-9]{32,}\b"),
    ("key", r"\b(?=[\w-]*\d)(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[A-Za-z0-9_-]{36,}\b"),
)  # fmt: skip
COMPILED = tuple((kind, re.compile(pattern, re.DOTALL)) for kind, pattern in PATTERNS)


def mask(text: str) -> str:
    """Text with e-mail and network addresses, telephone, card and identity numbers, and keys replaced by `[kind]`."""
    for kind, pattern in COMPILED:
        text = pattern.sub(f"[{kind}]", text)
    return text


def masked_excerpt(text: str, characters: int = 160) -> str:
    """At most `characters` of a text on one line, masked before it is cut so that no half of a secret survives."""
    line = " ".join(mask(text).split())
    return line if len(line) <= characters else f"{line[: characters - 2].rstrip()} …"
