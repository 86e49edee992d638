"""Pages of the site as MyST text, one function a page, made from paper.toml, results.json, notebooks and guides."""

import importlib
import re
from pathlib import Path
from textwrap import shorten
from typing import Any

import nbformat

from lib import root
from lib.lab import bench, guides, papers, paths, picture, report
from lib.lab.claims import interval, passed_in_words, read
from lib.lab.run import RESULTS

PROFILE = "cpu"
CODE = re.compile(r"(`+[^`]+`+)")
SPECIAL = re.compile(r"([\\*|_:])")
LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:)(?:\.\./)?([^)#\s]*)(#[^)\s]*)?\)")
TABLE = re.compile(r"^(\| (?:verdict|outcome) \|.*\n(?:\|.*\n)+)", re.M)
MOVED = {"tests/FAMILIES.md": "families.md", f"figures/{PROFILE}/CLAIMS.md": "claims.md"}


def finished() -> list[str]:
    """Papers with a finished run in the default profile, in the order of their notebooks."""
    return [p for p in paths.paper_notebooks() if (paths.results_dir(PROFILE, p) / RESULTS).exists()]


def index() -> str:
    """First page: what Tenfold is, a card a paper with its telling figure, where to go."""
    readme = (root() / "README.md").read_text(encoding="utf8")
    lead = readme.split("\n## ", 1)[0].split("\n", 1)[1].strip()
    drawn = picture.file_of(PROFILE).name
    lead = lead.replace(f"figures/{PROFILE}/guides/{drawn}", f"figures/{drawn}")
    shown = [f"notebooks/{path.stem}" for path in on_several()]
    whole = ["claims", "running", "benchmarks", "families", "shared"]
    contents = "\n".join([*(f"papers/{paper}" for paper in finished()), *whole, *shown])
    cards = [_card(paper) for paper in finished()]
    return "\n".join([f"# Tenfold\n\n{lead}\n", *cards, f"```{{toctree}}\n:hidden:\n\n{contents}\n```\n"])


def _card(paper: str) -> str:
    record, guide = papers.load(paper), guides.load(paper)
    results = report.as_today(read(paths.results_dir(PROFILE, paper) / RESULTS))
    found = " ".join([f"{report.counted(results['claims'])}.", results["finding"]]).strip()
    parts = [f"## [{record.short}](papers/{paper}.md)\n\n{record.idea}\n", f"**What we found.** {found}\n"]
    if guide:
        parts.append(f"[![{guide.caption}](figures/{paper}/{guide.figure})](papers/{paper}.md)\n")
    return "\n".join(parts)


def on_site(text: str, up: str = "") -> str:
    """Turn a guide's links to files of the repository into links within the site, or into the bare name of the file.

    `up` leads from the page to the site's first one.
    """

    def moved(match: re.Match[str]) -> str:
        picture, said, file, place = match[1], match[2], match[3], match[4] or ""
        if not file:
            return match[0]
        if picture and file.startswith(f"figures/{PROFILE}/"):
            return f"![{said}]({up}{file.replace(f'{PROFILE}/', '', 1)})"
        if file in MOVED or file.startswith("notebooks/"):
            return f"[{said}]({up}{MOVED.get(file, file)}{place})"
        if file.startswith(f"figures/{PROFILE}/benchmarks/"):
            return f"[{said}]({up}benchmarks.md)"
        return f"`{file}`" if said == file else f"{said} (`{file}`)"

    return LINK.sub(moved, text)


def running() -> str:
    """How to run Tenfold, as `docs/running.md` says it."""
    return on_site((guides.folder() / "running.md").read_text(encoding="utf8"))


def on_several() -> list[Path]:
    """Executed notebooks on several papers, but for the benchmarks, which have a page of their own."""
    found = {name: path for name, path in paths.guide_notebooks().items() if name != "benchmarks"}
    executed = [paths.results_dir(PROFILE, name) / path.name for name, path in found.items()]
    return [path for path in executed if path.exists()]


def claims() -> str:
    """What was found in each paper, and all claims with their verdicts."""
    return stacked(report.claims_page(PROFILE).replace("$", "\\$"))


def stacked(text: str) -> str:
    """Mark tables of five columns from the verdict to the rule: on a narrow screen their cells stand in one column."""
    return TABLE.sub(r":::{container} verdicts\n\1:::\n", text)


def paper(name: str) -> str:
    """One paper's page, in one template: finding, guide, claims, checks, figures, equations, notebook, API."""
    record = papers.load(name)
    results = report.as_today(read(paths.results_dir(PROFILE, name) / RESULTS))
    notebook = nbformat.read(paths.results_dir(PROFILE, name) / paths.notebook_of(name).name, as_version=4)
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    parts = [
        f"# {record.short}\n\n*{record.title}*, [arXiv:{record.arxiv}](https://arxiv.org/abs/{record.arxiv}), "
        f"{record.venue}.\n\n{record.idea}\n",
        *([f"## What we found\n\n{results['finding']}"] if results["finding"] else []),
        *_guide(name),
        f"## The paper says, we measure\n\n{_claims_table(results)}",
        *_apart(results),
        f"## Figures\n\n{_figures(name, results)}",
        f"## Equations\n\n{_equations(prose[1:-1])}",
        _deeper(prose[-1], "Deviations"),
        "## What is not reproduced\n\n" + "\n".join(f"- {line}" for line in record.not_reproduced or ("–",)),
        _run(results),
        f"## API\n\n{_documented(f'lib.{name}', imported=True)}",
        *_study(name),
        f"```{{toctree}}\n:hidden:\n\n../notebooks/{paths.notebook_of(name).stem}\n```\n",
    ]  # fmt: skip
    return "\n\n".join(parts)


def _guide(name: str) -> list[str]:
    """Section of a paper's guide, a level deeper and without its title and picture, where there is one."""
    guide = guides.load(name)
    return [f"## Use it\n\n{_deeper(on_site(guide.body, '../')).strip()}"] if guide else []


def _study(name: str) -> list[str]:
    """Section of what only the paper's notebook and benchmark use, module by module, where its room has a study."""
    modules = [f"lib.{name}.study.{path.stem}" for path in sorted((root() / "lib" / name / "study").glob("[a-z]*.py"))]
    parts = [f"### `{module}`\n\n{_documented(module)}" for module in modules]
    said = "## The study\n\nWhat the notebook and the benchmark are made from; the method does not need it."
    return [said, *parts] if parts else []


def families() -> str:
    """Table of what each method does with each family of models, as the tests keep it."""
    return (root() / "tests" / "FAMILIES.md").read_text(encoding="utf8")


def shared() -> str:
    """What several methods use: shared rooms, with all that they hand out."""
    rooms = ["lib.preference", "lib.zoo"]
    rooms += [f"lib.core.{path.stem}" for path in sorted((root() / "lib" / "core").glob("[a-z]*.py"))]
    parts = [f"## `{room}`\n\n{_documented(room, imported=room in ('lib.preference', 'lib.zoo'))}" for room in rooms]
    return "\n\n".join(["# Shared rooms\n\nWhat several methods use, written once.", *parts])


def _documented(room: str, *, imported: bool = False) -> str:
    """Block that documents a module's public names and, on request, those that a package hands out from its files.

    What it hands out from a shared room is documented there.
    """
    module, options = importlib.import_module(room), ["   :members:"]
    if imported:
        homes = {name: str(getattr(getattr(module, name), "__module__", room)) for name in module.__all__}
        elsewhere = [name for name, home in homes.items() if home.startswith("lib.") and not home.startswith(room)]
        options += ["   :imported-members:", *([f"   :exclude-members: {', '.join(elsewhere)}"] if elsewhere else [])]
    constants = _constants(room, module) if imported else []
    return "\n".join(["```{eval-rst}", f".. automodule:: {room}", *options, *constants, "```"]) + "\n"


def _constants(room: str, module: Any) -> list[str]:
    """Entries of what a package hands out that has no docstring: names of things, and what they hold."""
    lines = []
    for name in module.__all__:
        value = getattr(module, name)
        if not callable(value):
            held = value if isinstance(value, tuple | list | str | int | float) else tuple(value)
            held = shorten(repr(held), 100)
            lines += ["", f".. py:data:: {name}", f"   :module: {room}", f"   :value: {held}"]
    return lines


def _claims_table(results: dict[str, Any]) -> str:
    lines = ["| verdict | the paper says | measured | ours [95 % interval] | holds if |", "|---|---|---|---|---|"]
    for claim in results["claims"]:
        ours = f"{interval(claim)} ({claim['n']})" if claim["estimate"] is not None else "–"
        if claim.get("planned_count"):
            ours += (
                f"; planned: {claim['planned_count']}, to find {claim['smallest_effect']:g} {claim['unit']}".rstrip()
            )
        said = f"{claim['quote']} ({claim['place']})"
        lines.append(_line(report.marked(claim), said, claim["measured"], ours, claim["rule"]))
    return stacked("\n".join([*lines, ""]))


def _apart(results: dict[str, Any]) -> list[str]:
    """Sections of the checks and of the gates, where there are any."""
    parts = []
    titles = {
        "checks": "Checks of our own code: they say nothing about the paper",
        "gates": "Gates: what must be so before a claim can be judged",
    }
    for kind, title in titles.items():
        lines = [f"| outcome | {kind[:-1]} | measured | ours [95 % interval] | holds if |", "|---|---|---|---|---|"]
        for one in results[kind]:
            ours = f"{interval(one)} ({one['n']})" if one["n"] else interval(one)
            lines.append(_line(passed_in_words(one["passed"]), one["what"], one["measured"], ours, one["rule"]))
        if results[kind]:
            parts.append(f"## {title}\n\n" + stacked("\n".join([*lines, ""])))
    return parts


def _line(*cells: str) -> str:
    return report.line(*(cell.replace("$", "\\$") for cell in cells))


def _figures(name: str, results: dict[str, Any]) -> str:
    shown = []
    for figure, caption in results["figures"].items():
        shown.append(f"```{{figure}} ../figures/{name}/{figure}.png\n:alt: {figure}\n\n{caption}\n```")
    return "\n\n".join(shown)


def _equations(prose: list[str]) -> str:
    with_math = [_deeper(text) for text in prose if "$$" in text]
    return "\n\n".join(with_math) or "The notebook holds the method's definitions in words."


def _deeper(text: str, title: str | None = None) -> str:
    """A notebook's markdown cell one level of headings deeper, or with its first heading replaced by `title`."""
    if title:
        return re.sub(r"\A#+ .*", f"## {title}", text.strip())
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(p if i % 2 else re.sub(r"^(#+ )", r"#\1", p, flags=re.MULTILINE) for i, p in enumerate(parts))


def _run(results: dict[str, Any]) -> str:
    machine, versions = results["machine"], results["versions"]
    stack = ", ".join(f"{package} {versions[package]}" for package in ("python", "torch", "transformers"))
    return (
        f"## The run\n\nProfile `{results['profile']}`, seed {results['seed']}, {results['minutes_cold']:.1f} minutes "
        f"cold, {results['peak_memory_gib']:.1f} GiB at most, on {machine['cores']} cores of {machine['processor']}; "
        f"{stack}.\n\n"
        f"[The executed notebook](../notebooks/{paths.notebook_of(results['paper']).name})"
    )


def benchmarks() -> str:
    """Every room's benchmarks: ratio to each peer, taken in turn in one run, with their pictures."""
    parts = [
        "# Benchmarks\n\nOurs and a peer, measured in turn in one process (`make bench`). A ratio under 1 is in our "
        "favour, bold where the whole interval is; a peer that wins is shown as winning.\n"
    ]
    rows = bench.recorded(PROFILE)
    for name, part in rows.groupby("paper", sort=False):
        parts.append(f"## {papers.load(str(name)).short}\n\nOn {part['machine'].iloc[0]}.\n")
        parts.append(_bench_table(part))
    for drawn in figure_files("benchmarks"):
        parts.append(f"```{{figure}} figures/benchmarks/{drawn.name}\n:alt: {drawn.stem}\n```\n")
    return "\n".join(parts)


def _bench_table(rows) -> str:
    lines = ["| case | ours | peer | ours / peer [95 %] | goal | pairs |", "|---|---|---|---|---|---|"]
    for row in rows.itertuples():
        ratio = f"{row.ratio:.3f} [{row.low:.3f}, {row.high:.3f}]"
        shown = f"**{ratio}**" if row.high < 1 else ratio
        goal = f"≤ {row.goal:.3g}{' ✔' if row.ratio <= row.goal else ' ✘'}" if row.goal == row.goal else ""
        peer = f"{row.peer:.4g} {row.unit} ({row.peer_name})"
        lines.append(f"| {row.case} | {row.ours:.4g} {row.unit} | {peer} | {shown} | {goal} | {row.pairs} |")
    return "\n".join(lines) + "\n"


def figure_files(name: str) -> list[Path]:
    """Pictures of the run of a paper or guide."""
    return sorted(paths.results_dir(PROFILE, name).glob("*.png"))


# --- docstrings: ours are prose with code in backticks; what reStructuredText would read into it is escaped -----------


def as_prose(_app, _what, _name, _object, _options, lines: list[str]) -> None:
    """Rewrite a docstring's lines in place (signature of Sphinx's event `autodoc-process-docstring`)."""
    lines[:] = as_rst("\n".join(lines)).split("\n")


def as_rst(text: str) -> str:
    """reStructuredText that shows a docstring as written: paragraphs, indented or bulleted lines kept as they are."""
    paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    return "\n\n".join(_paragraph(paragraph.split("\n")) for paragraph in paragraphs) + "\n"


def _paragraph(lines: list[str]) -> str:
    listed = any(re.match(r"\s+\S|\s*([-*]|\d+\.)\s", line) for line in lines)
    if listed:  # a line block keeps line ends and indents
        return "\n".join(f"| {_escaped(line)}" for line in lines)
    return "\n".join(_escaped(line) for line in lines)


def _escaped(line: str) -> str:
    parts = CODE.split(line)
    return "".join(f"``{p.strip('`')}``" if i % 2 else SPECIAL.sub(r"\\\1", p) for i, p in enumerate(parts))
