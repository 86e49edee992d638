"""`make docs`: a site from executed notebooks, results and docstrings, built and checked without a network.

Every warning of Sphinx is an error; dead links are refused, and so is whatever a network would bring.
"""

import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lib import TenfoldError, root
from lib.lab import paths, picture
from lib.lab.site import pages

STYLE = """\
table { font-size: 0.85rem; } td { vertical-align: top; }
.content img { max-width: 100%; height: auto; background: white; }
div.table-wrapper, .cell_output { overflow-x: auto; }
.verdicts td:first-child { font-weight: bold; }
@media (max-width: 46em) {
  .verdicts table, .verdicts tbody, .verdicts tr, .verdicts td { display: block; width: 100%; }
  .verdicts thead { display: none; }
  .verdicts tr { border-bottom: 1px solid var(--color-table-border); padding: 0.4rem 0; }
  .verdicts td { border: 0 !important; padding: 0.1rem 0.5rem !important; }
  .verdicts td { overflow-wrap: anywhere; box-sizing: border-box; }
  .verdicts td p { display: inline; margin: 0; padding: 0; }
  .verdicts td:nth-child(4)::before { content: "ours: "; }
  .verdicts td:nth-child(5)::before { content: "holds if: "; }
}
"""


def build(target: Path | None = None) -> Path:
    """Build the site and return its first page; raises TenfoldError with what to mend where anything is wrong."""
    source, target = paths.cache_dir() / "site", target or root() / "build" / "site"
    if not pages.finished():
        raise TenfoldError("there are no results to show: run `make reproduce` first.")
    write_sources(source)
    _sphinx(source, target)
    faults = dead_links(target)
    if faults:
        raise TenfoldError("the site has dead links or asks for the network: " + "; ".join(faults[:10]))
    return target / "index.html"


def write_sources(source: Path) -> None:
    """Pages, executed notebooks and pictures into a folder of their own, made anew."""
    shutil.rmtree(source, ignore_errors=True)
    for folder in ("papers", "notebooks", "figures", "_static"):
        (source / folder).mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("conf.py"), source)
    (source / "_static" / "tenfold.css").write_text(STYLE)
    texts = {"index": pages.index(), "claims": pages.claims(), "benchmarks": pages.benchmarks()}
    texts["shared"] = pages.shared()
    texts |= {"families": pages.families(), "running": pages.running()}
    for paper in pages.finished():
        texts[f"papers/{paper}"] = pages.paper(paper)
        executed = paths.results_dir(pages.PROFILE, paper) / paths.notebook_of(paper).name
        shutil.copy(executed, source / "notebooks")
    for executed in pages.on_several():
        shutil.copy(executed, source / "notebooks")
    shutil.copy(picture.file_of(pages.PROFILE), source / "figures")
    for name in (*pages.finished(), "benchmarks"):
        (source / "figures" / name).mkdir()
        for drawn in pages.figure_files(name):
            shutil.copy(drawn, source / "figures" / name)
    for name, text in texts.items():
        (source / f"{name}.md").write_text(text, encoding="utf8")


def _sphinx(source: Path, target: Path) -> None:
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        raise TenfoldError("the site needs Sphinx: pip install -e '.[docs]'") from None
    shutil.rmtree(target, ignore_errors=True)
    if build_main(["-q", "-E", "-W", "--keep-going", "-b", "html", str(source), str(target)]):
        raise TenfoldError("Sphinx found something to mend: see its warnings above.")


class _Page(HTMLParser):
    """A page's places (ids) and what it links to or fetches, as (tag, address); no tree is built, which is slow."""

    ADDRESS = {"a": "href", "link": "href", "script": "src", "img": "src"}

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: dict[tuple[str, str], None] = {}  # each once, in the page's order
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids.add(named.get("id") or "")
        address = named.get(self.ADDRESS.get(tag, ""))
        if address is not None:
            self.links[tag, address] = None


def dead_links(target: Path) -> list[str]:
    """Links inside the site that lead nowhere, and scripts, styles or pictures that would be fetched from elsewhere."""
    read = {page: _Page(page.read_text(encoding="utf8")) for page in target.rglob("*.html")}
    anchors = {page: found.ids for page, found in read.items()}
    faults = []
    for page, found in read.items():
        for tag, link in found.links:
            fault = _fault(page, link, tag, anchors)
            faults += [f"{page.relative_to(target)}: {fault}"] if fault else []
    return faults


def _fault(page: Path, link: str, tag: str, anchors: dict[Path, set[str]]) -> str:
    parts = urlsplit(link)
    if parts.scheme in ("http", "https") or link.startswith("//"):
        return "" if tag == "a" else f"{tag} from {link}"
    if parts.scheme:
        return ""
    goal = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    goal = goal / "index.html" if goal.is_dir() else goal
    if not goal.exists():
        return f"{link} leads nowhere"
    if parts.fragment and goal in anchors and unquote(parts.fragment) not in anchors[goal]:
        return f"{link} names no place of that page"
    return ""
