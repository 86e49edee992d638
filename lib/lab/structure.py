"""The anatomy every notebook keeps, checked without running it; each problem says what to do."""

import re
from itertools import groupby
from pathlib import Path
from statistics import median

import nbformat

from lib import TenfoldError, root
from lib.lab import claims, papers, profiles
from lib.lab import parameters as cell
from lib.lab.paths import GUIDES, NUMBERED

LIMITS = {"longest cell": 25, "median cell": 12, "code cells in a row": 2}  # lines that are not empty, and cells
LARGEST_ROOM = 14  # Python files of a paper's method, its study apart
LARGER_ROOMS = {"sciagent": 16}  # its sandbox has files that run inside, and may import nothing of the others
REQUIRED = ("parameters", "setup", "claims")
FORBIDDEN = {
    r"sys\.path": "changes sys.path: import from `lib` instead",
    r"[\"'](/(home|Users|root)/|[A-Z]:\\)": "holds an absolute path: use lib.lab.paths or a parameter",
    r"if\s+.*\b(smoke|profile)\b\s*[=:]": "branches on the profile: make it a parameter",
    r"^\s*[!%]": "calls the shell or a magic: use Python",
    r"^\s*assert\b.*claim": "asserts a conclusion: hand the estimate to run.claim",
}


def problems(path: Path) -> list[str]:
    """List what keeps a notebook from Tenfold's anatomy; empty where nothing does."""
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    match = NUMBERED.fullmatch(path.name)
    name = match[2] if match else path.stem
    found = [*(_guide(notebook, code) if name in GUIDES else _frame(notebook, code)), *_hygiene(notebook, code)]
    found += _rhythm(notebook)
    try:
        found += _parameters(path, name if match else "")
    except TenfoldError as error:
        found.append(str(error))
    if match:
        found += _costs(name) if name in GUIDES else _paper(name, code)
    return found


def _parameters(path: Path, name: str) -> list[str]:
    """What is wrong with the parameters cell and, of a numbered notebook, with what the profiles state of it."""
    declared = cell.read(path)
    found = [
        f"parameter {p.name!r} has no help: add `# what it is, with its unit`" for p in declared.values() if not p.help
    ]
    if "seed" not in declared:
        found.append("no `seed` parameter")
    for profile in profiles.names() if name else []:
        file = f"notebooks/profiles/{profile}.toml"
        values = profiles.load(profile).values.get(name)
        if values is None:
            found.append(f"{file} states no values of {name}: add [parameters.{name}] with all of them")
            continue
        cell.with_defaults(declared, values, file)
        cell.validate(declared, values, file)
        for p in declared.values() if profile == profiles.DEFAULT else []:
            if (here := cell.literal(p.default)) != (there := cell.literal(values[p.name])):
                found.append(f"{p.name} = {here} here and {there} in {file}: write the value you mean in both")
    return found


def _guide(notebook, code) -> list[str]:
    found = []
    for number, tag in enumerate(("parameters", "setup")):
        if len(code) <= number or tag not in code[number].metadata.get("tags", []):
            found.append(f"code cell {number + 1} is not tagged {tag!r}")
    if notebook.cells[0].cell_type != "markdown" or not notebook.cells[0].source.startswith("# "):
        found.append("the first cell is a markdown title `# …`")
    if not code or "run.finish()" not in code[-1].source:
        found.append("the last code cell calls run.finish()")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernelspec is not `python3`")
    return found


def _frame(notebook, code) -> list[str]:
    found = []
    tags = [c.metadata.get("tags", []) for c in code]
    for tag in REQUIRED:
        count = sum(tag in t for t in tags)
        if count != 1:
            found.append(f"{count} code cells are tagged {tag!r}: tag exactly one")
    if not found and ("parameters" not in tags[0] or "setup" not in tags[1] or "claims" not in tags[-1]):
        found.append("the order is: parameters, setup, …, claims as the last code cell")
    first, last = notebook.cells[0], notebook.cells[-1]
    if (
        first.cell_type != "markdown"
        or not first.source.startswith("# ")
        or "arxiv.org/abs/" not in first.source.lower()
    ):
        found.append("the first cell is a markdown title `# …` with a link to the paper on arXiv")
    if last.cell_type != "markdown" or "deviation" not in last.source.lower():
        found.append("the last cell is markdown: deviations from the paper, limits, what to try next")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernelspec is not `python3`")
    return found


def _hygiene(notebook, code) -> list[str]:
    found = []
    if any(c.outputs or c.execution_count for c in code):
        found.append("it holds outputs: clear them (sources are committed without outputs)")
    if "papermill" in notebook.metadata:
        found.append("it carries papermill's metadata of an old run: remove that block")
    for number, c in enumerate(notebook.cells, start=1):
        if c.cell_type != "code":
            continue
        for pattern, what in FORBIDDEN.items():
            if re.search(pattern, c.source, re.MULTILINE):
                found.append(f"cell {number} {what}")
    return found


def rhythm(notebook) -> dict[str, int | float]:
    """Measure what `LIMITS` bounds: lines of code that are not empty by cell, code cells without prose between them."""
    listed = [cell.TAG in c.metadata.get("tags", []) for c in notebook.cells]  # parameters, which cannot be split
    code = [c for c, parameters in zip(notebook.cells, listed, strict=True) if c.cell_type == "code" and not parameters]
    lines = [sum(bool(line.strip()) for line in c.source.splitlines()) for c in code] or [0]
    runs = [len(list(group)) for kind, group in groupby(c.cell_type for c in notebook.cells) if kind == "code"] or [0]
    return {"longest cell": max(lines), "median cell": median(lines), "code cells in a row": max(runs)}


def _rhythm(notebook) -> list[str]:
    return [
        f"{name}: {value:g}, where at most {LIMITS[name]} reads well: move code to lib, split cells, write prose"
        for name, value in rhythm(notebook).items()
        if value > LIMITS[name]
    ]


def files_of_method(paper: str) -> list[Path]:
    """Python files of a paper's room without those of its study."""
    room = root() / "lib" / paper
    return [path for path in sorted(room.rglob("*.py")) if "study" not in path.relative_to(room).parts]


def _paper(paper: str, code) -> list[str]:
    try:
        record = papers.load(paper)
    except TenfoldError as error:
        return [str(error)]
    source = "\n".join(c.source for c in code)
    found = [f"{r.kind} {r.id!r} of paper.toml is not handed in" for r in record.all() if f'"{r.id}"' not in source]
    named = {gate for claim in record.claims for gate in claim.gates}
    found += [f"gate {g.id!r} of paper.toml is named by no claim" for g in record.gates if g.id not in named]
    elsewhere = {r.id for r in (*record.claims, *record.checks) if not claims.decides(r, profiles.DEFAULT)}
    found += [
        f"the finding rests on {name!r}, which the {profiles.DEFAULT} profile does not decide"
        for _, name, spec in papers.places(record.finding)
        if name in elsewhere and spec != "verdict"
    ]
    if not record.finding:
        found.append("paper.toml has no `finding`: one or two sentences with places that results fill")
    if not record.headline:
        found.append("paper.toml has no `headline`: the paper's main point in words, with {claim} for its verdict")
    return found + _costs(paper)


def _costs(paper: str) -> list[str]:
    missing = [profile for profile in profiles.names() if paper not in profiles.load(profile).cost]
    return [f"profile {p!r} does not say what {paper} costs: add [cost.{paper}]" for p in missing]
