from lib import root
from lib.lab import paths
from lib.lab.site import build, docstrings, pages


def test_docstrings_stay_prose():
    text = "Σ |x| * y of `keep` and ``rank``: (Eq. 2).\n\n`a` where *b*:\n    indented\n- item"
    assert docstrings.as_rst(text) == (
        "Σ \\|x\\| \\* y of ``keep`` and ``rank``\\: (Eq. 2).\n\n| ``a`` where \\*b\\*\\:\n|     indented\n| - item\n"
    )


def test_dead_links_and_foreign_pictures_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html">x</a> <a href="b.html#here">x</a> <a href="b.html#there">x</a> <a href="c.html">x</a>'
        '<a href="https://arxiv.org">x</a> <img src="https://arxiv.org/x.png">'
    )
    (tmp_path / "b.html").write_text('<p id="here">x</p>')
    assert build.dead_links(tmp_path) == [
        "a.html: b.html#there names no place of that page",
        "a.html: c.html leads nowhere",
        "a.html: img from https://arxiv.org/x.png",
    ]


def test_every_finished_paper_has_a_telling_figure():
    telling = pages.telling_figures()
    for paper in pages.finished():
        assert (paths.results_dir(pages.PROFILE, paper) / telling[paper][0]).exists(), f"{paper}: no row in the README"


def test_the_site_builds_offline_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TENFOLD_FIGURES", str(root() / "figures"))
    first = build.build(tmp_path / "site")
    text = first.read_text(encoding="utf8")
    for paper in pages.finished():
        assert f'href="papers/{paper}.html"' in text
        page = (tmp_path / "site" / "papers" / f"{paper}.html").read_text(encoding="utf8")
        for heading in ("The paper says, we measure", "Figures", "Equations", "Deviations", "API"):
            assert f">{heading}<" in page, f"{paper}: no {heading}"
