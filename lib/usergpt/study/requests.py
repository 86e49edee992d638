"""What a request asks for, told without a language model: its verb and object, and the programming languages in it.

Instructions are usually summed up by their verb and its object ("write poem"); here both are found by word lists, so
that thousands of free-form labels cost seconds. Questions become "ask how", "ask what"; a text without either gets no
phrase. A programming language is told by name where the name can mean nothing else, else by how it is used.
"""

import re
from collections.abc import Iterable

import pandas as pd

from lib.usergpt.topics import VERBS

SKIPPED = frozenset(
    "a an the my your our this that these those me us it its some any more please also now then just for of in to on "
    "with about from and or as is are be all each one two three new another very so you i we he she they can could "
    "would should will want need like following given same below above short good best detailed simple up out".split()
)
QUESTIONS = frozenset("how what why which who when where is are do does did should".split())
LANGUAGES = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
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
    }.items()
}


def task_phrase(request: str) -> str:
    """Give verb and object of a request's first instruction, "ask …" for a question, "" where there is neither."""
    words = re.findall(r"[a-z][a-z+#-]*", request.lower()[:600])
    for place, word in enumerate(words[:40]):
        if word in VERBS:
            about = [w for w in words[place + 1 : place + 9] if w not in SKIPPED and w not in VERBS][:2]
            return " ".join([word, *about])
        if word in QUESTIONS and place < 3:
            about = [w for w in words[place + 1 : place + 9] if w not in SKIPPED and w not in QUESTIONS][:2]
            return " ".join(["ask", word, *about])
    return ""


def languages_asked(text: str) -> tuple[str, ...]:
    """List the programming languages that a request names or uses, in alphabetical order."""
    return tuple(sorted(name for name, pattern in LANGUAGES.items() if pattern.search(text)))


def language_table(texts: Iterable[str]) -> pd.DataFrame:
    """Tell which languages texts ask for: a column of zeros and ones for each language, a row for each text."""
    asked = [languages_asked(text) for text in texts]
    return pd.DataFrame({language: [float(language in own) for own in asked] for language in LANGUAGES})
