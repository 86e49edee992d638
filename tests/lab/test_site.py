import importlib

from lib import root
from lib.lab import site
from lib.lab.site import pages


def test_docstrings_stay_prose():
    text = "Σ |x| * y of `keep` and ``rank``: (Eq. 2).\n\n`a` where *b*:\n    indented\n- item"
    assert pages.as_rst(text) == (
        "Σ \\|x\\| \\* y of ``keep`` and ``rank``\\: (Eq. 2).\n\n| ``a`` where \\*b\\*\\:\n|     indented\n| - item\n"
    )


def test_dead_links_and_foreign_pictures_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html">x</a> <a href="b.html#here">x</a> <a href="b.html#there">x</a> <a href="c.html">x</a>'
        '<a href="https://arxiv.org">x</a> <img src="https://arxiv.org/x.png">'
    )
    (tmp_path / "b.html").write_text('<p id="here">x</p>')
    assert site.dead_links(tmp_path) == [
        "a.html: b.html#there names no place of that page",
        "a.html: c.html leads nowhere",
        "a.html: img from https://arxiv.org/x.png",
    ]


def test_links_of_a_guide_lead_to_pages_of_the_site_or_to_none():
    links = (
        "[a](../tests/FAMILIES.md) [b](../figures/cpu/CLAIMS.md#lorc) [c](../tests/MUTANTS.md) [d](#e) [f](https://g.h)"
    )
    moved = "[a](../families.md) [b](../claims.md#lorc) c (`tests/MUTANTS.md`) [d](#e) [f](https://g.h)"
    assert pages.on_site(links, "../") == moved
    picture = "![loss minus that of Palu](../figures/cpu/lorc/peers.png)"
    assert pages.on_site(picture, "../") == "![loss minus that of Palu](../figures/lorc/peers.png)"


def undocumented(room, *pages):
    """Names that a room hands out and no page describes, by the name of the room or of their home."""
    module = importlib.import_module(room)
    handed_out = {name: getattr(module, name) for name in module.__all__}
    assert handed_out, f"{room} hands out nothing"
    homes = {name: getattr(one, "__module__", room) for name, one in handed_out.items()}
    ids = {name: (f'id="{room}.{name}"', f'id="{home}.{name}"') for name, home in homes.items()}
    return [name for name, places in ids.items() if not any(place in page for place in places for page in pages)]


def test_the_site_builds_offline_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TENFOLD_FIGURES", str(root() / "figures"))
    first = site.build(tmp_path / "site")
    text = first.read_text(encoding="utf8")
    shared = (tmp_path / "site" / "shared.html").read_text(encoding="utf8")
    for paper in pages.finished():
        assert f'href="papers/{paper}.html"' in text
        page = (tmp_path / "site" / "papers" / f"{paper}.html").read_text(encoding="utf8")
        for heading in ("Use it", "Example", "The paper says, we measure", "Figures", "Equations", "Deviations", "API"):
            assert f">{heading}<" in page, f"{paper}: no {heading}"
        assert not undocumented(f"lib.{paper}", page, shared)
        if (root() / "lib" / paper / "study" / "bench.py").exists():
            assert f'id="lib.{paper}.study.bench.cases"' in page
        search = (tmp_path / "site" / "searchindex.js").read_text(encoding="utf8")
        unknown = [name for name in importlib.import_module(f"lib.{paper}").__all__ if f'"{name}"' not in search]
        assert not unknown, f"the search does not know {unknown}"
    assert not undocumented("lib.preference", shared) + undocumented("lib.zoo", shared)
