"""`docs/<paper>.md`: a method's guide, whose title and first picture README and site show, too."""

import re
from dataclasses import dataclass
from pathlib import Path

from lib import TenfoldError, root

SECTIONS = ("Example", "How it works", "Options", "Limits")
TITLE = r"\A# ([^:\n]+): ([^\n]+)\n+"
PICTURE = r"!\[([^\]]+)\]\(\.\./figures/cpu/([a-z_]+)/([a-z0-9_-]+\.png)\)\n+"
FORM = re.compile(rf"{TITLE}{PICTURE}(.*)\Z", re.S)


@dataclass(frozen=True)
class Guide:
    """A guide in parts: the paper's short name, a plain line on the method, a telling figure, and all that follows."""

    short: str
    plain: str
    caption: str
    paper: str
    figure: str
    body: str


def folder() -> Path:
    """Name the folder of all guides."""
    return root() / "docs"


def load(paper: str) -> Guide | None:
    """Read a paper's guide, where it has one; raises TenfoldError where that does not keep the form of the others."""
    path = folder() / f"{paper}.md"
    if not path.exists():
        return None
    match = FORM.match(path.read_text(encoding="utf8"))
    if match is None or match[4] != paper:
        raise TenfoldError(
            f"docs/{paper}.md begins with `# Short name: a plain line`, then a picture of figures/cpu/{paper}/."
        )
    guide = Guide(*match.groups())
    titles = tuple(re.findall(r"^## (.+)$", guide.body, re.M))
    if titles != SECTIONS:
        raise TenfoldError(f"docs/{paper}.md has the sections {', '.join(SECTIONS)}, in this order, not {titles}.")
    return guide
