"""What a run would compute, and why, told before anything runs: `make reproduce DRY_RUN=1`.

A stage's key holds values that only a run can know. What can be told without one: whether its entry is still kept,
whether a part of its key has changed (code of `lib`, a function of the notebook, a parameter, a version, an asset, the
seed), and whether something has changed that its inputs were made from, found by following names through the
notebook's statements. The first two are certain; the last is said as "perhaps", since an input may come out the same.
"""

import ast
import builtins
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.lab import keys, paths

KEPT, COMPUTED, PERHAPS = "kept", "computed", "perhaps computed"


@dataclass(frozen=True)
class Forecast:
    """One stage (all its entries of one name): what would happen, to how many entries, and why."""

    stage: str
    state: str
    entries: int
    why: str = ""


@dataclass
class Statement:
    """One top-level statement of a notebook: names it makes or changes, names it reads, its text without layout."""

    makes: set[str]
    reads: set[str]
    text: str
    stages: set[str] = field(default_factory=set)


def statements(cells: list[str]) -> list[Statement]:
    """Statements of a notebook's code cells, in order."""
    return [_statement(node) for source in cells for node in ast.parse(source).body]


def _statement(node: ast.stmt) -> Statement:
    found = Statement(set(), set(), keys.normal_form(ast.Module([node], [])))
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            (found.reads if isinstance(inner.ctx, ast.Load) else found.makes).add(inner.id)
        elif isinstance(inner, ast.FunctionDef | ast.ClassDef):
            found.makes.add(inner.name)
        elif isinstance(inner, ast.Import | ast.ImportFrom):
            found.makes |= {(alias.asname or alias.name).partition(".")[0] for alias in inner.names}
        elif isinstance(inner, ast.Subscript | ast.Attribute) and isinstance(inner.ctx, ast.Store | ast.Del):
            found.makes |= {n.id for n in ast.walk(inner.value) if isinstance(n, ast.Name)}
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute):
            if inner.func.attr in ("stage", "folder_stage") and inner.args:
                found.stages.add(_beginning(inner.args[0]))
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        found.makes |= {n.id for n in ast.walk(node.value.func) if isinstance(n, ast.Name)}  # x.append(…)
    found.reads -= set(dir(builtins))
    return found


def _beginning(name: ast.expr) -> str:
    """A stage's name as far as it is written out: all of a string, or an f-string up to its first place."""
    if isinstance(name, ast.JoinedStr) and name.values and isinstance(name.values[0], ast.Constant):
        return str(name.values[0].value)
    return str(name.value) if isinstance(name, ast.Constant) else ""


def behind(names: set[str], notebook: list[Statement]) -> list[Statement]:
    """Statements that the values of some names can depend on."""
    wanted, found = set(names), []
    waiting = list(notebook)
    while hits := [s for s in waiting if s.makes & wanted]:
        found += hits
        waiting = [s for s in waiting if s not in hits]
        wanted |= set().union(*(s.reads for s in hits))
    return found


def imported(cells: list[str]) -> dict[str, str]:
    """Modules of `lib` that a notebook imports, by the name it gives them (or to what it takes from them)."""
    found = {}
    modules = keys.import_graph().modules
    for node in (inner for source in cells for inner in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lib":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found[alias.asname or alias.name] = whole if whole in modules else str(node.module)
        elif isinstance(node, ast.Import):
            found |= {a.asname or "lib": a.name for a in node.names if a.name.partition(".")[0] == "lib"}
    return found


def code_of(modules: set[str]) -> dict[str, str]:
    """Digest of each module of `lib` that some modules can reach, themselves included."""
    reached = {name for module in modules for name in keys.reach(module) if name.startswith("lib.")}
    return {name: keys.module_digest(name) for name in sorted(reached)}


def stages(
    paper: str, results: Path, before: dict[str, Any], cells: list[str], parameters: dict[str, Any]
) -> list[Forecast]:
    """What would happen to each stage of the last run, whose stamp is `before`; empty where nothing ran here yet."""
    try:
        entries = json.loads(results.read_text(encoding="utf8"))["stages"]
    except (OSError, ValueError, KeyError):
        return []
    current, earlier = statements(cells), {s.text for s in statements(before["cells"])}
    functions = _functions(cells)
    changed = {n for n, v in parameters.items() if v != before["parameters"].get(n)}
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in entries:
        name = entry.rsplit("-", 1)[0]
        found.setdefault(name, []).append(_certain(paper, entry, functions, parameters))
    undone = set()  # stages whose edit was taken back, so that entries of an earlier run fit again
    for name, told in found.items():
        earlier_runs = {e.name for e in (paths.cache_dir() / paper).glob(f"{name}-*")} - set(entries)
        fits = sum(_certain(paper, entry, functions, parameters)[0] == KEPT for entry in earlier_runs)
        if any(state == COMPUTED for state, _ in told) and fits >= len(told):
            found[name] = [(KEPT, "")] * len(told)
            undone.add(name)
    computed = {name for name, told in found.items() if any(state == COMPUTED for state, _ in told)}
    altered = [s for s in current if s.text not in earlier]
    moved = {m for m, d in code_of(set(imported(cells).values())).items() if before["modules"].get(m) != d}
    forecasts = []
    for name, told in found.items():
        if name not in computed | undone:
            why = _upstream(name, current, computed, altered, changed, moved, imported(cells))
            told = [(PERHAPS, why) if why else (KEPT, "")] * len(told)
        for (state, why), count in Counter(told).items():
            forecasts.append(Forecast(name, state, count, why))
    return forecasts


def _certain(paper: str, entry: str, functions: dict[str, set[str]], parameters: dict[str, Any]) -> tuple[str, str]:
    """Whether an entry is gone or a part of its key has changed."""
    try:
        parts = json.loads((paths.cache_dir() / paper / entry / "meta.json").read_text())["depends_on"]
    except (OSError, ValueError, KeyError):
        return COMPUTED, "it is not in the cache"
    modules = [m for m, d in parts["modules"].items() if not keys.is_here(m) or keys.module_digest(m) != d]
    if modules:
        return COMPUTED, f"{keys.as_file(modules[0])} has changed" + _and_more(modules)
    edited = [f for f, d in parts["functions"].items() if d not in functions.get(f, set())]
    if edited:
        return COMPUTED, f"the notebook's {edited[0]} has changed" + _and_more(edited)
    reads = keys.Reads({})
    told = parameters | {"run.parameters": parameters}
    values = [n for n, d in parts["values"].items() if n in told and reads.digest(told[n]) != d]
    if values or parts["seed"] != parameters.get("seed", 0):
        return COMPUTED, f"{(values or ['seed'])[0]} is another value" + _and_more(values)
    installed = [p for p, v in parts["versions"].items() if p != "python" and keys.version_of(p) != v]
    if installed:
        return COMPUTED, f"{installed[0]} is another version" + _and_more(installed)
    pinned = [a for a, f in parts["assets"].items() if keys.fingerprint(a) != f]
    if pinned:
        return COMPUTED, f"the asset {pinned[0]} is another file" + _and_more(pinned)
    if parts.get("shipped", {}) != keys.shipped_to(parts["modules"]):
        return COMPUTED, "what data/weights ships is another file"
    return KEPT, ""


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _upstream(stage, current, computed, altered, changed, moved, aliases) -> str:
    """First reason for which a stage's inputs may come out otherwise, or nothing."""
    own = [s for s in current if any(stage.startswith(begins) for begins in s.stages if begins)]
    names = set().union(*(s.makes | s.reads for s in own)) if own else set()
    chain = own + [s for s in behind(names, current) if s not in own]
    for statement in chain:
        before = [name for name in computed if any(name.startswith(b) for b in statement.stages if b)]
        if before and statement not in own:
            return f"stage {before[0]!r} comes before it"
        if statement in altered:
            return "a statement that it depends on has changed"
        if statement.reads & changed:
            return f"{min(statement.reads & changed)} is another value"
        for alias in statement.reads & aliases.keys():
            if reached := keys.reach(aliases[alias]) & moved:
                return f"{keys.as_file(min(reached))} has changed"
    return ""


def _functions(cells: list[str]) -> dict[str, set[str]]:
    """Digests of all functions in a notebook's code, by their qualified names."""
    found: dict[str, set[str]] = {}

    def collect(code) -> None:
        for constant in code.co_consts:
            if hasattr(constant, "co_code"):
                found.setdefault(constant.co_qualname, set()).add(keys.code_digest(constant))
                collect(constant)

    for source in cells:
        collect(compile(source, "notebook", "exec"))
    return found
