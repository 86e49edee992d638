"""One standalone page of an annotated corpus, for the people who have to act on it: it opens offline, and asks nothing.

It shows users' shares of task types and domains beside benchmarks', what is shifted and what is overlooked, topics in a
hierarchy, a map that zooms, and a table of masked examples that can be searched. Topics of fewer conversations than a
stated minimum, and the conversations in them, are counted and never shown.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib import TenfoldError, unwritable, zoo
from lib.usergpt.annotation import read_rows
from lib.usergpt.chat_annotator import ChatModel
from lib.usergpt.compare import Population, distribution, labelled, of_collections, share_table
from lib.usergpt.similarity import Cut, LabelSpace, SentenceEncoder, choose, indicator
from lib.usergpt.taxonomy import OTHER, GoldLabel, Kind, Taxonomy, load_gold, load_taxonomy
from lib.usergpt.topics import HIDDEN, Topics, find_topics, flat_map

PAGE = Path(__file__).with_name("report.html")
KINDS: tuple[Kind, ...] = ("tasks", "domains")
MOST = 5_000  # conversations on the map and in the table, a random part of a larger corpus; shares count it whole


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
    labels = _as_labels(rows, taxonomy, encoder)
    users = users or _users(rows, labels, taxonomy, seed)
    part = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST])
    texts = [rows[i]["summary"] or rows[i]["excerpt"] for i in part]
    points = np.asarray(encoder.encode([rows[i]["excerpt"] for i in part]))
    found = find_topics(points, texts, clusters=topics, branches=branches, minimum=minimum, seed=seed, namer=namer)
    data = {
        "title": title, "conversations": len(rows), "threads": len({row["thread"] for row in rows}),
        "unread": sum(bool(row["fault"]) for row in rows), "families": len(benchmarks), "minimum": minimum,
        "shares": {kind: _shares(kind, users[kind], benchmarks, taxonomy, seed) for kind in KINDS},
        "overlooked": list(taxonomy.overlooked()), "names": {kind: taxonomy.names(kind) for kind in KINDS},
        "tree": _tree(found), "items": _items(found, texts, [labels[i] for i in part], flat_map(points, seed=seed)),
        "hidden": int((found.member == HIDDEN).sum()),
    }  # fmt: skip
    return _written(Path(out) if out else folder / "report.html", data)


def _as_labels(rows: Sequence[Mapping[str, Any]], taxonomy: Taxonomy, encoder: SentenceEncoder) -> list[GoldLabel]:
    """Codes of rows, free words put to the nearest label (of several the last); what could not be read is none."""
    codes = {*taxonomy.codes("tasks"), OTHER}
    tasks = [row["tasks"] if codes.issuperset(row["tasks"]) else row["tasks"][-1:] for row in rows]
    domains = [row["domain"] or OTHER for row in rows]
    task_of = _coded((task for own in tasks for task in own), "tasks", taxonomy, encoder)
    domain_of = _coded(domains, "domains", taxonomy, encoder)
    listed = zip(rows, domains, tasks, strict=True)
    return [GoldLabel(r["id"], domain_of[d], tuple(task_of[task] for task in own) or (OTHER,)) for r, d, own in listed]


def _coded(phrases: Iterable[str], kind: Kind, taxonomy: Taxonomy, encoder: SentenceEncoder) -> dict[str, str]:
    """Code of each phrase: a code stands for itself, free words for the nearest label."""
    coded = {code: code for code in (*taxonomy.codes(kind), OTHER)}
    if free := sorted(set(phrases) - coded.keys()):
        space = LabelSpace(taxonomy, kind, encoder)
        chosen = choose(space.scores(encoder.encode(free)), space.codes, Cut(-1.0))
        coded |= {phrase: codes[0] for phrase, codes in zip(free, chosen, strict=True)}
    return coded


def _users(
    rows: Sequence[Mapping[str, Any]], labels: Sequence[GoldLabel], taxonomy: Taxonomy, seed: int
) -> dict[Kind, Population]:
    """Shares of both kinds as the annotator gives them, with intervals over threads."""
    threads, shares = [row["thread"] for row in rows], {}
    for kind in KINDS:
        codes = (*taxonomy.codes(kind), OTHER)
        own = distribution(indicator(labels, codes, kind))
        shares[kind] = labelled(own, threads, codes, unit="conversations", seed=seed)
    return shares


def _shares(
    kind: Kind, users: Population, benchmarks: Sequence[GoldLabel], taxonomy: Taxonomy, seed: int
) -> list[dict[str, Any]]:
    """Rows of users' and benchmarks' shares of one kind, largest first."""
    collections: dict[str, list[GoldLabel]] = {}
    for label in benchmarks:
        collections.setdefault(label.id.split("/")[0], []).append(label)
    other = of_collections(collections, kind, (*taxonomy.codes(kind), OTHER), seed=seed + 7)
    table = share_table(users, other, taxonomy.names(kind), taxonomy.paper_shares(kind))
    table = table.sort_values("users", ascending=False).round(4).astype(object)
    return table.where(table.notna(), None).to_dict("records")


def _tree(topics: Topics) -> list[dict[str, Any]]:
    tree = []
    for branch, name in topics.branches.items():
        own = sorted((c for c in topics.clusters if c.branch == branch), key=lambda c: -c.size)
        listed = [{"number": c.number, "name": c.name, "size": c.size} for c in own]
        tree.append({"branch": branch, "name": name, "size": sum(c.size for c in own), "topics": listed})
    return sorted(tree, key=lambda row: -row["size"])


def _items(topics: Topics, texts: Sequence[str], labels: Sequence[GoldLabel], places: np.ndarray) -> list[list[Any]]:
    """Place, branch, topic, tasks, domain and text of each conversation that is shown; coordinates in [0, 1]."""
    low, high = places.min(axis=0), places.max(axis=0)
    unit = ((places - low) / (high - low).clip(1e-9)).round(4).tolist()
    rows = zip(unit, topics.branch_of().tolist(), topics.member.tolist(), labels, texts, strict=True)
    return [[*at, b, topic, list(own.tasks), own.domain, text] for at, b, topic, own, text in rows if topic != HIDDEN]


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
