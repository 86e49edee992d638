"""A tool: a documented Python function with its units, examples that ran, and what a language model is shown of it."""

import re
from dataclasses import dataclass, replace
from typing import Any

from lib.sciagent.docstrings import Described, Docstring, parse
from lib.sciagent.phrases import context_of, first_clause, goal_of

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", tuple: "array"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a tool; `unit` is "" where it has none, `kind` a JSON type or "" where nothing tells."""

    name: str
    text: str = ""
    unit: str = ""
    kind: str = ""
    required: bool = True
    default: Any = None


@dataclass(frozen=True)
class Example:
    """A call by named arguments, what it gave, and whether that is what the documentation prints."""

    arguments: dict[str, Any]
    value: Any
    verified: bool


@dataclass(frozen=True)
class Tool:
    """A function that programs may call by `name`.

    `place` is where the sandbox finds it (`module:attribute`), or "" for a user's function, whose code is `source`.
    `positional` functions take their arguments by position only. `family` is the library's module: functions of one
    family resemble each other, so splits keep families together.
    """

    name: str
    library: str
    family: str
    domain: str
    summary: str
    parameters: tuple[Parameter, ...]
    returns: Parameter
    examples: tuple[Example, ...]
    place: str = ""
    source: str = ""
    positional: bool = False

    @property
    def verified(self) -> bool:
        """Whether an example gave what the documentation prints (or, without doctest, the same twice)."""
        return any(example.verified for example in self.examples)

    def listed(self) -> tuple[Parameter, ...]:
        """Parameters that a model is shown: the required ones and those that examples use."""
        used = {name for example in self.examples for name in example.arguments}
        return tuple(p for p in self.parameters if p.required or p.name in used)

    def signature(self) -> str:
        """Call as a model sees it."""
        return f"{self.name}({', '.join(p.name for p in self.listed())}{', /' if self.positional else ''})"

    def shown(self) -> str:
        """Signature, result, what is special, and each parameter's meaning and unit."""
        named = [f"{p.name}: {_short(p)}" for p in self.listed() if p.text]
        return f"{self.brief()}; {'; '.join(named)}"

    def brief(self) -> str:
        """Signature, result, and what is special: the text that a model is shown to choose by."""
        return f"{self.signature()} -> {self.gives()}"

    def gives(self) -> str:
        """Its result, and what is special about it."""
        goal = goal_of(self.returns.text, self.summary)
        special = context_of(self.summary, goal)
        return f"{goal}{f' ({special})' if special else ''}"

    def indexed(self) -> str:
        """Text a retriever indexes: name, summary, parameters, result."""
        words = " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", self.name))
        listed = ", ".join(first_clause(p.text, 40) for p in self.parameters if p.text)
        returned = first_clause(self.returns.text, 60)
        return f"{words}. {_cut(self.summary, 160)} Given {_cut(listed, 160)}. Returns {returned}."

    def call(self, arguments: dict[str, Any]) -> str:
        """Source of a call with these arguments."""
        if self.positional:
            return f"{self.name}({', '.join(written(v) for v in arguments.values())})"
        return f"{self.name}({', '.join(f'{k}={written(v)}' for k, v in arguments.items())})"

    def schema(self) -> dict[str, Any]:
        """JSON schema of the call, in the form that function-calling interfaces take."""
        properties = {}
        for p in self.parameters:
            properties[p.name] = {"description": f"{p.text}{f' [{p.unit}]' if p.unit else ''}"}
            properties[p.name] |= {"type": p.kind} if p.kind else {}
            properties[p.name] |= {} if p.required or p.default is None else {"default": p.default}
        return {
            "type": "function",
            "function": {
                "name": self.name, "description": self.summary,
                "parameters": {
                    "type": "object", "properties": properties,
                    "required": [p.name for p in self.parameters if p.required],
                },
            },
        }  # fmt: skip

    def named(self, name: str) -> "Tool":
        """The same tool under another name."""
        source = re.sub(rf"\bdef {re.escape(self.name)}\b", f"def {name}", self.source)
        return replace(self, name=name, source=source)


def written(value: Any) -> str:
    """Number, text or list as Python source; whole floats without their `.0`, numbers in their shortest form."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, float) and value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return repr(value)


def _short(p: Parameter) -> str:
    return f"{first_clause(p.text, 26)}{f' {p.unit}' if p.unit else ''}"


def _cut(text: str, most: int) -> str:
    """Text up to a word's end."""
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0].rstrip(" ,;(")


def from_record(record: dict[str, Any], domain: str, *, source: str = "") -> Tool:
    """Tool of a record that `inside.harvest` made, of a library's function or of a user's `source`."""
    document = parse(record["doc"])
    module = record["place"].partition(":")[0] or "user"
    examples = tuple(Example(**e) for e in record["examples"])
    return Tool(
        name=record["name"], library=module.split(".")[0], family=module, domain=domain, summary=document.summary,
        parameters=tuple(_parameter(p, document, examples) for p in record["parameters"]),
        returns=_returned(document), examples=examples, place=record["place"], source=source,
        positional=record["positional"],
    )  # fmt: skip


def _parameter(record: dict[str, Any], document: Docstring, examples: tuple[Example, ...]) -> Parameter:
    said = next((d for d in document.parameters if d.name == record["name"]), Described(record["name"], "", "", ""))
    values = [e.arguments[record["name"]] for e in examples if record["name"] in e.arguments]
    kind = JSON_TYPES.get(type(values[0]), "") if values else ""
    if kind == "integer" and "int" not in said.kind:
        kind = "number"
    return Parameter(said.name, said.text, said.unit, kind, record["required"], record.get("default"))


def _returned(document: Docstring) -> Parameter:
    if not document.returns:
        return Parameter("result")
    first = document.returns[0]
    return Parameter(first.name, first.text or first.kind, first.unit)
