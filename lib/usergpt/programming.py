"""Programming languages that users ask for: by name where the name can mean nothing else, else by how it is used."""

import re

PATTERNS = {
    "Python": r"\bpython\b|\bpandas\b|\bdjango\b|\bflask\b|\bpytorch\b|\bjupyter\b|\.py\b",
    "HTML/CSS": r"\bhtml5?\b|\bs?css\b|\btailwind\b",
    "JavaScript": r"\bjavascript\b|\bnode ?\.?js\b|\breact\b|\bvue\b|\bjquery\b|\.js\b|\bnext\.?js\b",
    "TypeScript": r"\btypescript\b|\.tsx?\b|\bangular\b",
    "SQL": r"\b(?:my|postgre)?sql\b|\bpostgres\b|\bsqlite\b",
    "Java": r"\bjava\b|\bspring boot\b",
    "C#": r"(?<!\w)c#|\bcsharp\b|\bunity\b(?=.{0,40}\b(?:script|game)\b)|\.net\b(?! income)",
    "C++": r"(?<!\w)c\+\+|\bcpp\b",
    "C": r"\b(?:in|using|ansi|embedded) c\b(?![+#'])|\bc (?:program|code|language|function)\b",
    "PHP": r"\bphp\b|\blaravel\b|\bwordpress plugin\b",
    "Shell": r"\bbash\b|\bpowershell\b|\bshell script\b|\bzsh\b",
    "R": r"\b(?:in|using|with) r\b(?! ?[&'])|\br (?:code|script|studio|package)\b|\brstudio\b|\bggplot2?\b",
    "Go": r"\bgolang\b|\b(?:in|using) go\b|\bgo (?:code|program|routine|function)\b",
    "Rust": r"\b(?:in|using) rust\b|\brust (?:code|program|lang|crate)\b|\bcargo\.toml\b",
    "Swift": r"\bswift ?ui\b|\bin swift\b|\bswift code\b",
    "Kotlin": r"\bkotlin\b",
    "Ruby": r"\bruby\b(?= (?:on|code|gem|script))|\bin ruby\b|\brails\b",
    "VBA": r"\bvba\b|\bvisual basic\b",
    "MATLAB": r"\bmatlab\b",
}
COMPILED = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in PATTERNS.items()}


def languages_asked(text: str) -> tuple[str, ...]:
    """Programming languages that a request names or uses, in alphabetical order."""
    return tuple(sorted(name for name, pattern in COMPILED.items() if pattern.search(text)))
