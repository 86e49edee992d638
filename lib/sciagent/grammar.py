"""The grammar of programs, for constrained decoding: what a model decides, and what follows from that by itself.

A program is a few lines `name = …`, the last one `answer = …`. Before each the model chooses a shown function or
arithmetic; a call then has its arguments in the order of the signature, each under a comment with its documented
meaning, where the model points at the words of the question that say its value (each serves once a call) or at a line
above. Only choices are asked of the model, and only choices are learned; the rest is written for it.

    # use the Reynolds number: Reynolds
    answer = Reynolds(
        # V, velocity [m/s]: the speed of the water is 2.5
        V=2.5,
        ...
    )

Deviation: the paper's programs are free text; a call within an expression is two lines here.
"""

import ast
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from lib.sciagent.docstrings import first_clause
from lib.sciagent.program import BUILTINS, MATHS, ProgramRefused, checked
from lib.sciagent.quantities import TIMES, in_unit, leading_number, plain_signs, stated_unit
from lib.sciagent.tools import Parameter, Tool, written

# Not the digits of a name (H2O), of an exponent (m^3) or of a registry number (7732-18-5); units may touch a number.
NUMBER = re.compile(
    r"(?<![\w^.\-])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\d^]|-\d|\.\d)(?:" + TIMES + ")?"
)
QUOTED = re.compile(r"(?<!\w)'([^']+)'|\"([^\"]+)\"")
BRACKETED = re.compile(r"\[[\d\s.,\-\[\]eE+]*\]")
DELIMITER = re.compile(r"[.?!;:,]\s+|\b(?:and|if|that|when|where|suppose|with|given)\s+", re.I)
STATED = re.compile(r"(?:\b(?:is|are|was|equals)|=)\s*$")
SAID = re.compile(
    r"(?<!what )\b(is|are) ((?:(?!\sand\s|\sis\s|\sare\s)[^,;?])+?)(?=\.?\s*(?:$|[,;?]|\.\s)|\sand\s)", re.I
)
NUMERIC = ("number", "integer", "")
MOST_WORDS_BEFORE = 12  # that say what a number is
MOST_LINES = 3  # of a program, comments and arguments apart
MOST_WORDS = 6  # of a text that is copied from a question without quotation marks
ARITHMETIC = "# use arithmetic\n"
TOKEN = re.compile(r"\s+|[A-Za-z_]\w*|\d[\w.]*(?:[eE][+-]?\d*)?|\*\*|//|[=!<>]=|'[^'\n]*'|\"[^\"\n]*\"|.")
WORD = re.compile(r"[A-Za-z_]\w*")
FUNCTIONS = {*BUILTINS, *MATHS}
CONSTANTS = {"pi", "e", "True", "False", "None", "if", "else", "and", "or", "not", "in", "for"}
LONGEST_EXPRESSION = 391  # characters


@dataclass(frozen=True)
class Choice:
    """The model picks one of the texts (one text: nothing to pick). None is the beginning of another.

    `odds` multiply the model's probabilities: what is known beside it of each text; none where nothing is.
    """

    options: tuple[str, ...]
    odds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Free:
    """The model writes a line; `allows` says whether a text can still become one, or, ending with a newline, is one."""

    allows: Callable[[str], bool]


Step = Choice | Free


class ProgramGrammar:
    """Programs for a question with the functions shown; `steps` asks for one choice after the other.

    `odds` say how likely each function is to be the right one before the model is asked (a retriever knows), whatever
    their sum; against arithmetic they say nothing.
    """

    def __init__(self, tools: Sequence[Tool], question: str, odds: Sequence[float] = ()) -> None:
        self.tools = {purpose_line(tool): tool for tool in tools}
        mean = sum(odds) / len(odds) if odds else 1.0
        self.odds = (*(odd / mean for odd in odds), 1.0) if odds else ()
        self.values = QuestionValues(question)

    def steps(self) -> Generator[Step, str, None]:
        """Yield the next step and be sent the text picked, until `answer` is assigned."""
        known: list[str] = []
        while "answer" not in known:
            used = yield Choice((*self.tools, ARITHMETIC), self.odds)
            names = ("answer", f"step{len(known) + 1}")[: 1 if len(known) == MOST_LINES - 1 else 2]
            name = yield Choice(tuple(f"{name} = " for name in names))
            if used == ARITHMETIC:
                yield Free(_arithmetic(tuple(known)))
            else:
                yield from self._call(self.tools[used], tuple(known))
            known.append(name.removesuffix(" = "))

    def _call(self, tool: Tool, known: tuple[str, ...]) -> Generator[Step, str, None]:
        yield Choice((f"{tool.name}(\n",))
        left, taken = list(tool.listed()), []
        needed = sum(p.required and p.kind in NUMERIC for p in left)
        while left:
            required = next((i for i, p in enumerate(left) if p.required), None)
            within = left[: 1 if tool.positional else len(left) if required is None else required + 1]
            within = [p for p in within if p.required or self.values.holds(p.kind, taken)]
            offered = {argument_comment(p): p for p in within}
            begun = yield Choice((*offered, *([")\n"] if required is None else [])))
            if begun == ")\n":
                return
            parameter = offered[begun]
            values = self.values.of(parameter.kind, taken, known, needed=needed, unit=parameter.unit)
            options = {argument_line(tool, parameter, *value): value[1] for value in values}
            taken.append(options[(yield Choice(tuple(options)))])
            left = left[left.index(parameter) + 1 :]
        yield Choice((")\n",))


def purpose_line(tool: Tool) -> str:
    """Write the line that says what is computed next and by what: the result comes first, so that it decides."""
    return f"# use {tool.gives()}: {tool.name}\n"


def argument_comment(parameter: Parameter) -> str:
    """Write the comment before an argument, up to where the question says its value."""
    text = first_clause(parameter.text, 40) or "undocumented"
    return f"    # {parameter.name}, {text}{f' [{parameter.unit}]' if parameter.unit else ''}:"


def argument_line(tool: Tool, parameter: Parameter, clause: str, value: str) -> str:
    """Write the end of that comment, and the argument."""
    return f" {clause}\n    {'' if tool.positional else f'{parameter.name}='}{value},\n"


Stated = tuple[str, str]  # the words of a question that say a value, and the value as Python source


@dataclass(frozen=True)
class StatedNumber:
    """A number of a question: the words that say it, itself as Python source, and the unit that follows it or ""."""

    words: str
    source: str
    unit: str = ""

    def as_in(self, unit: str) -> str:
        """Source of the number in a parameter's unit; a percentage is a share where the parameter has none."""
        value = in_unit(float(self.source), self.unit, unit)
        return self.source if value is None or value == float(self.source) else written(float(f"{value:.12g}"))


class QuestionValues:
    """Numbers, texts and lists of numbers that a question holds, each with the words that say it."""

    def __init__(self, question: str) -> None:
        question = plain_signs(" ".join(question.split()))
        self.numbers = _numbers(question, stated=False)
        self.stated = _numbers(question, stated=True)
        self.texts = list(dict.fromkeys(_texts(question)))
        self.lists = [(text, text) for text in dict.fromkeys(BRACKETED.findall(question)) if _balanced(text)]
        self.lists.append(("all numbers", f"[{', '.join(n.source for n in self.numbers)}]"))
        self._source = {n.source: n.source for n in self.numbers}  # of a number in some unit, that in the question

    def holds(self, kind: str, taken: Sequence[str]) -> bool:
        """Whether a value for a parameter of a kind is left."""
        return kind not in NUMERIC or len(self.stated or self.numbers) > sum(value in self._source for value in taken)

    def of(
        self, kind: str, taken: Sequence[str], known: Sequence[str] = (), *, needed: int = 1, unit: str = ""
    ) -> list[Stated]:
        """List values for a parameter of a JSON type ("" for unknown), without those taken while others are left.

        Where the question states (`… is 2.5`) as many numbers as the call needs, its other numbers are no values.
        Variables `known` from lines above count as numbers. A number is given in the parameter's `unit`.
        """
        if kind == "boolean":
            return [(text, text) for text in ("True", "False")]
        if kind == "string":
            return self.texts or [("nothing", "''")]
        if kind == "array":
            return self.lists
        every = self.stated if len(self.stated) >= max(1, needed - len(known)) else self.numbers
        numbers = list(every)
        for value in taken:
            held = [n for n in numbers if n.source == self._source.get(value)]
            if held:
                numbers.remove(held[0])
        whole = [n for n in numbers if re.fullmatch(r"-?\d+", n.source)] if kind == "integer" else []
        left = [(n.words, self._in(n, unit)) for n in whole or numbers or every]
        return [*dict.fromkeys(left), *((name, name) for name in known)] or [("nothing", "0")]

    def _in(self, number: StatedNumber, unit: str) -> str:
        source = number.as_in(unit)
        self._source.setdefault(source, number.source)
        return source


def _numbers(question: str, *, stated: bool) -> list[StatedNumber]:
    """Each number (or each that is stated) with the words before it that say what it is."""
    numbers, closed = [], [0, *(said.end() for said in SAID.finditer(question))]
    for number in NUMBER.finditer(question):
        after = question[number.end() :]
        unit = stated_unit(after)
        if after[:1].isalpha() and not unit:
            continue  # the beginning of a name, such as 2H2
        if not stated or STATED.search(question[: number.start()]):
            before = max(end for end in closed if end <= number.start())
            text = number[0].replace(",", "")
            source = written(leading_number(text)[0]) if number[1] else text  # a power of ten is multiplied out
            numbers.append(StatedNumber(_clause(question[before : number.end()], first=not before), source, unit))
            closed.append(number.end())
    return numbers


def _clause(words: str, *, first: bool) -> str:
    """The words that say a value: after what ended the clause before, from an article on, at most so many."""
    ends = [end.end() for end in DELIMITER.finditer(words) if words[end.end() :].strip()]
    if ends:
        named = [end for end in ends if words[end:].lower().startswith("the ")]
        words = words[(named or ends)[-1] if first else ends[0] :]
    article = re.search(r"\bthe\s", words, re.I)
    words = words[article.start() :] if article else words
    return " ".join((words[:1].lower() + words[1:] if article else words).split()[-MOST_WORDS_BEFORE:])


def _texts(question: str) -> list[Stated]:
    """Texts in quotation marks and those that are stated; where there are neither, any few words."""
    texts = [(text, repr(text)) for text in (one or other for one, other in QUOTED.findall(question))]
    for said in SAID.finditer(question):
        if not NUMBER.match(said[2]):
            before = max((other.end() for other in SAID.finditer(question[: said.start()])), default=0)
            texts.append((_clause(question[before : said.end()], first=not before), repr(said[2])))
    if texts:
        return texts
    words = question.split()
    rows = [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, min(i + MOST_WORDS, len(words)) + 1)]
    return [(text, repr(text)) for text in (row.strip(" ,.;:?!()\"'") for row in rows) if text]


def _balanced(text: str) -> bool:
    try:
        return isinstance(ast.literal_eval(text), list)
    except (SyntaxError, ValueError):
        return False


def _arithmetic(known: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a text can become (or, with its newline, is) an expression of builtins and variables assigned before."""
    words = FUNCTIONS | CONSTANTS | set(known)

    def allows(text: str) -> bool:
        expression, whole = text.removesuffix("\n"), text.endswith("\n")
        if text.startswith((" ", "\n")) or "\n" in expression or len(expression) > LONGEST_EXPRESSION:
            return False
        tokens, depth = TOKEN.findall(expression), 0
        for i, token in enumerate(tokens):
            if WORD.fullmatch(token):
                after = next((t for t in tokens[i + 1 :] if not t.isspace()), "")
                if i == len(tokens) - 1 and not whole:
                    possible = any(word.startswith(token) for word in words)
                else:
                    possible = token in (FUNCTIONS if after == "(" else words - FUNCTIONS | CONSTANTS)
                if not possible:
                    return False
            elif token in tuple("=;:{}@\\`$?!#."):
                return False
            depth += (token in tuple("([")) - (token in tuple(")]"))
            if depth < 0:
                return False
        return not whole or (depth == 0 and _is_program("".join(f"{name} = 0\n" for name in known), expression))

    return allows


def _is_program(before: str, expression: str) -> bool:
    try:
        checked(f"{before}answer = {expression}", functions=())
    except ProgramRefused:
        return False
    return True


def choices_of(program: str, grammar: ProgramGrammar) -> list[tuple[str, tuple[str, ...]]]:
    """Part a program of assignments into the texts in turn, each with what it was chosen from (nothing: freely).

    Raises ValueError where the grammar has no such program.
    """
    steps = grammar.steps()
    parts: list[tuple[str, tuple[str, ...]]] = []
    step: Step | None = next(steps)
    for wanted in _wanted(program, grammar):
        options = step.options if isinstance(step, Choice) else ()
        text = next((option for option in options if wanted(option)), "")
        if isinstance(step, Free) and step.allows(wanted.text):
            text = wanted.text
        if step is None or not text:
            raise ValueError(f"{wanted.text.strip()!r} cannot be written here: the grammar allows {step}")
        parts.append((text, options))
        try:
            step = steps.send(text)
        except StopIteration:
            step = None
    return parts


@dataclass(frozen=True)
class _Wanted:
    """A text, or any that ends with it."""

    text: str
    whole: bool = True

    def __call__(self, option: str) -> bool:
        return option == self.text if self.whole else option.endswith(self.text)


def _wanted(program: str, grammar: ProgramGrammar) -> list[_Wanted]:
    wanted = []
    for line in ast.parse(program).body:
        assert isinstance(line, ast.Assign)
        value, target = line.value, ast.unparse(line.targets[0])
        called = value.func.id if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else ""
        tool = next((tool for tool in grammar.tools.values() if tool.name == called), None)
        if tool is None:
            source = ast.get_source_segment(program, value)
            wanted += [_Wanted(ARITHMETIC), _Wanted(f"{target} = "), _Wanted(f"{source}\n")]
            continue
        assert isinstance(value, ast.Call)
        names = [p.name for p in tool.parameters]
        given = {**dict(zip(names, value.args, strict=False)), **{str(k.arg): k.value for k in value.keywords}}
        wanted += [_Wanted(purpose_line(tool)), _Wanted(f"{target} = "), _Wanted(f"{called}(\n")]
        for p in tool.listed():
            if p.name in given:
                source = str(ast.get_source_segment(program, given[p.name]))
                wanted += [
                    _Wanted(argument_comment(p)),
                    _Wanted(argument_line(tool, p, "", source).removeprefix(" "), whole=False),
                ]
        wanted.append(_Wanted(")\n"))
    return wanted
