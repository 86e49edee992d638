"""One standalone page of an annotated corpus, for the people who have to act on it: it opens offline, and asks nothing.

It shows users' shares of task types and domains beside benchmarks', what is shifted and what is overlooked, topics in a
hierarchy, a map that zooms, and a table of masked examples that can be searched. Topics of fewer conversations than a
stated minimum, and the conversations in them, are counted and never shown.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib import TenfoldError, unwritable, zoo
from lib.usergpt.annotation import read_rows
from lib.usergpt.chat_annotator import ChatModel
from lib.usergpt.compare import Population, balanced, distribution, labelled, share_table
from lib.usergpt.similarity import Cut, LabelSpace, SentenceEncoder, choose, indicator
from lib.usergpt.taxonomy import OTHER, GoldLabel, Kind, Taxonomy, load_gold, load_taxonomy
from lib.usergpt.topics import HIDDEN, Topics, find_topics, flat_map

PAGE = Path(__file__).with_name("report.html")
KINDS: tuple[Kind, ...] = ("tasks", "domains")
MOST = (
    5_000  # conversations on the map and in the table: a random part of a larger corpus, which its shares count whole
)


def report(
    folder: Path | str,
    out: Path | str | None = None,
    *,
    title: str = "What people ask",
    taxonomy: Taxonomy | None = None,
    benchmarks: Sequence[GoldLabel] | None = None,
    encoder: SentenceEncoder | None = None,
    namer: ChatModel | None = None,
    users: Mapping[Kind, Population] | None = None,
    topics: int = 40,
    branches: int = 8,
    minimum: int = 12,
    seed: int = 0,
) -> Path:
    """Write the page of a folder that `annotate_corpus` filled (`<folder>/report.html` by default); return its path.

    Free-form labels are put to the nearest of the `taxonomy`, and `benchmarks` are labelled families (both ours by
    default). Shares are the annotator's own, with intervals over threads, unless corrected `users` are given. A
    `namer` names the topics, which else bear their frequent words. Raises TenfoldError where the folder holds fewer
    than two conversations for each topic.
    """
    folder, taxonomy = Path(folder), taxonomy or load_taxonomy()
    encoder = encoder or zoo.load_encoder()
    rows = list(read_rows(folder))
    if len(rows) < 2 * topics:
        raise TenfoldError(f"{folder} holds {len(rows)} conversations: too few for {topics} topics, ask for fewer.")
    benchmarks = [*load_gold(taxonomy, "benchmark_gold").values()] if benchmarks is None else benchmarks
    labels = [_as_label(row, taxonomy, encoder) for row in rows]
    tables = [_shares(kind, rows, labels, benchmarks, taxonomy, users, seed) for kind in KINDS]
    part = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST])
    texts = [rows[i]["summary"] or rows[i]["excerpt"] for i in part]
    points = np.asarray(encoder.encode([rows[i]["excerpt"] for i in part]))
    found = find_topics(points, texts, clusters=topics, branches=branches, minimum=minimum, seed=seed, namer=namer)
    data = {
        "title": title, "conversations": len(rows), "threads": len({row["thread"] for row in rows}),
        "unread": sum(bool(row["fault"]) for row in rows), "families": len(benchmarks), "minimum": minimum,
        "shares": dict(zip(KINDS, tables, strict=True)), "overlooked": list(taxonomy.overlooked()),
        "tree": _tree(found), "items": _items(found, texts, [labels[i] for i in part], flat_map(points, seed=seed)),
        "names": {kind: taxonomy.names(kind) for kind in KINDS}, "hidden": int((found.member == HIDDEN).sum()),
    }  # fmt: skip
    return _written(Path(out) if out else folder / "report.html", data)


def _as_label(row: Mapping[str, Any], taxonomy: Taxonomy, encoder: SentenceEncoder) -> GoldLabel:
    """Codes of a row, free-form phrases put to the nearest label; what could not be read is none of them."""
    known = {kind: {*taxonomy.codes(kind), OTHER} for kind in KINDS}
    tasks, domain = row["tasks"], row["domain"]
    if not known["tasks"].issuperset(tasks):
        tasks = [_nearest(taxonomy, "tasks", encoder, tasks[-1])]
    if domain and domain not in known["domains"]:
        domain = _nearest(taxonomy, "domains", encoder, domain)
    return GoldLabel(row["id"], domain or OTHER, tuple(tasks) or (OTHER,))


_SPACES: dict[tuple[int, int, Kind], tuple[LabelSpace, dict[str, str]]] = {}


def _nearest(taxonomy: Taxonomy, kind: Kind, encoder: SentenceEncoder, phrase: str) -> str:
    key = (id(taxonomy), id(encoder), kind)
    if key not in _SPACES:
        _SPACES[key] = (LabelSpace(taxonomy, kind, encoder), {})
    space, known = _SPACES[key]
    if phrase not in known:
        known[phrase] = choose(space.scores(encoder.encode([phrase])), space.codes, Cut(-1.0))[0][0]
    return known[phrase]


def _shares(
    kind: Kind, rows: Sequence[Mapping[str, Any]], labels: Sequence[GoldLabel], benchmarks: Sequence[GoldLabel],
    taxonomy: Taxonomy, users: Mapping[Kind, Population] | None, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of users' and benchmarks' shares of one kind, largest first."""
    codes = (*taxonomy.codes(kind), OTHER)
    own = distribution(indicator(labels, codes, kind))
    mine = labelled(own, [row["thread"] for row in rows], codes, unit="conversations", seed=seed)
    collections: dict[str, list[GoldLabel]] = {}
    for label in benchmarks:
        collections.setdefault(label.id.split("/")[0], []).append(label)
    sides = [
        labelled(
            distribution(indicator(side, codes, kind)), [label.id for label in side], codes, unit=name, seed=seed + 7
        )
        for name, side in collections.items()
    ]
    other = balanced(sides)
    table = share_table(users[kind] if users else mine, other, taxonomy.names(kind), taxonomy.paper_shares(kind))
    table = table.sort_values("users", ascending=False).round(4).astype(object)
    return table.where(table.notna(), None).to_dict("records")


def _tree(topics: Topics) -> list[dict[str, Any]]:
    tree = []
    for branch, name in topics.branches.items():
        own = sorted((c for c in topics.clusters if c.branch == branch), key=lambda c: -c.size)
        if own:
            listed = [{"number": c.number, "name": c.name, "size": c.size} for c in own]
            tree.append({"branch": branch, "name": name, "size": sum(c.size for c in own), "topics": listed})
    return sorted(tree, key=lambda row: -row["size"])


def _items(topics: Topics, texts: Sequence[str], labels: Sequence[GoldLabel], places: np.ndarray) -> list[list[Any]]:
    """Place, branch, topic, tasks, domain and text of each conversation that is shown; coordinates in [0, 1]."""
    low, high = places.min(axis=0), places.max(axis=0)
    unit = (places - low) / (high - low).clip(1e-9)
    branch = topics.branch_of()
    return [
        [
            *unit[i].round(4).tolist(),
            int(branch[i]),
            int(topics.member[i]),
            list(labels[i].tasks),
            labels[i].domain,
            text,
        ]
        for i, text in enumerate(texts)
        if topics.member[i] != HIDDEN
    ]


def _written(path: Path, data: Mapping[str, Any]) -> Path:
    """Write the page with its data in it, whole or not at all."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = PAGE.read_text(encoding="utf8").replace("/*DATA*/", text)
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(page, encoding="utf8")
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path.parent, "out", error) from None
    return path
