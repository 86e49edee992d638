"""Constrained decoding: whether an unfinished text can still become a program that calls only functions it was shown.

A program is assignments `name = expression`, a comment before each if need be, up to the one of `answer`. Reading from
left to right, a word before `(` must be a shown function or a builtin; a word before `=` inside a call must be one of
that function's parameters; any other word must be a variable assigned before. A call closes once its required
parameters are given, each of them once (functions that take arguments by position only are not counted). The end token
is allowed where the line that assigns `answer` is complete.
"""

import re
from collections.abc import Sequence

from lib.sciagent.program import BUILTINS, MATHS, ProgramRefused, checked
from lib.sciagent.tools import Tool

END = "<end>"  # stands for the end of the text
TOKEN = re.compile(r"\s+|[A-Za-z_]\w*|\d[\w.]*(?:[eE][+-]?\d*)?|\*\*|//|[=!<>]=|'[^'\n]*'|\"[^\"\n]*\"|.")
WORD, VARIABLE = re.compile(r"[A-Za-z_]\w*"), re.compile(r"[A-Za-z]\w{0,23}")
LONGEST_LINE = 400
CONSTANTS = {"pi", "e", "True", "False", "None"}
WORDS = {"if", "else", "and", "or", "not", "in", "for"}


class Grammar:
    """The rule for one set of functions shown; call it with a text, it says whether to go on."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.parameters = {
            t.name: {p.name for p in t.parameters} if not t.positional else set() for t in tools
        }  # fmt: skip
        self.required = {t.name: {p.name for p in t.parameters if p.required} for t in tools if not t.positional}
        self.functions = set(self.parameters) | set(BUILTINS) | set(MATHS)

    def __call__(self, text: str) -> bool:
        """Whether a text can still become a program (or, ending with the end token, is one)."""
        whole = text.endswith(END)
        lines = text.removesuffix(END).split("\n")
        known: set[str] = set()
        for number, line in enumerate(lines):
            last = number == len(lines) - 1
            doubled = number > 0 and line.startswith("#") and lines[number - 1].startswith("#")
            if doubled or "answer" in known or not (line or last):
                return False
            if not self._line(line, known, unfinished=last and not whole):
                return False
        return not whole or ("answer" in known and self._complete(text.removesuffix(END)))

    def _complete(self, program: str) -> bool:
        try:
            checked(program, functions=list(self.parameters))
        except ProgramRefused:
            return False
        return True

    def _line(self, line: str, known: set[str], *, unfinished: bool) -> bool:
        """Whether one line keeps to the rules, given the variables before it; adds the one it assigns."""
        if len(line) > LONGEST_LINE or line[:1].isspace():
            return False
        if line.startswith("#") or not line:
            return True
        name, equals, expression = line.partition(" = ")
        if not equals:
            return unfinished and bool(re.fullmatch(VARIABLE.pattern + "( =?)?", line)) and name not in self.functions
        if not VARIABLE.fullmatch(name) or name in self.functions:
            return False
        if not self._expression(expression, known, unfinished=unfinished):
            return False
        if not unfinished:
            known.add(name)
        return True

    def _expression(self, text: str, known: set[str], *, unfinished: bool) -> bool:
        tokens = TOKEN.findall(text)
        calls: list[str] = []  # open parentheses, innermost last: the function's name, or "" for grouping
        given: list[set[str]] = []  # the arguments that each open call was given by name
        for i, token in enumerate(tokens):
            last = i == len(tokens) - 1
            after = next((t for t in tokens[i + 1 :] if not t.isspace()), "")
            if token in "([":
                before = tokens[i - 1] if i else ""
                calls.append(before if token == "(" and before in self.functions else "")
                given.append(set())
            elif token in ")]":
                if not calls or not self.required.get(calls.pop(), set()) <= given.pop():
                    return False
            elif WORD.fullmatch(token):
                if last and unfinished:
                    if not self._may_become(token, calls, known):
                        return False
                elif not self._word(token, after, calls, known):
                    return False
                elif after == "=":
                    if token in given[-1]:
                        return False
                    given[-1].add(token)
            elif token in ("=", ";", ":", "{", "}", "@", "\\", "`", "$", "?", "!", "#", "."):
                if token != "=" or i == 0 or not calls or not WORD.fullmatch(tokens[i - 1]):
                    return False
        return unfinished or not calls

    def _word(self, word: str, after: str, calls: list[str], known: set[str]) -> bool:
        if after == "(":
            return word in self.functions
        if after == "=":
            return bool(calls) and word in self.parameters.get(calls[-1], ())
        return word in known or word in CONSTANTS or word in WORDS

    def _may_become(self, start: str, calls: list[str], known: set[str]) -> bool:
        parameters = self.parameters.get(calls[-1], ()) if calls else ()
        return any(
            w.startswith(start) for group in (self.functions, known, CONSTANTS, WORDS, parameters) for w in group
        )
