import numpy as np
import pytest

from lib.usergpt.merging import merge_labels, mutual_neighbour_groups, synonym
from lib.usergpt.study.comparison import purity
from lib.usergpt.study.requests import language_table, languages_asked, task_phrase
from lib.usergpt.topics import HIDDEN, find_topics, flat_map, name_clusters


@pytest.mark.parametrize(
    ("label", "common"),
    [
        ("Summarisation", "summarization"), ("email writing", "e-mail writing"), ("bug fixing", "debugging"),
        ("recommendations", "advice"), ("data analysis", "data analysis"), ("poems", "poem"),
        ("Q&A", "question answering"),
    ],
)  # fmt: skip
def test_synonyms_share_a_form(label, common):
    assert synonym(label) == common


def unit(*angles):
    return np.stack([[np.cos(a), np.sin(a)] for a in angles])


def test_only_mutual_near_neighbours_are_joined():
    groups = mutual_neighbour_groups(unit(0.0, 0.05, 1.5, 1.55, 3.0), k=1, threshold=0.99)
    assert groups[0] == groups[1] != groups[2] == groups[3] != groups[4]
    chain = unit(*np.arange(8) * 0.1)
    assert len(set(mutual_neighbour_groups(chain, k=1, threshold=0.9))) > 1
    assert len(set(mutual_neighbour_groups(chain, k=2, threshold=0.99))) == 1
    assert len(set(mutual_neighbour_groups(chain, k=2, threshold=0.999))) == 8
    assert mutual_neighbour_groups(unit(0.3), k=3, threshold=0.5) == [0]


def test_labels_are_merged_in_three_steps_and_named_by_the_commonest():
    counts = {"debugging": 10, "bug fixing": 4, "code repair": 5, "poems": 6, "odd": 1}
    places = dict(zip(["debugging", "code repair", "poem", "odd"], unit(0.0, 0.1, 1.5, 1.2), strict=True))
    merge = merge_labels(counts, places, k=2, threshold=0.99, rare_below=3)
    assert merge.counts == {"raw": 5, "synonyms": 4, "neighbours joined": 3, "rare joined": 2}
    assert merge.names == {
        "debugging": "debugging", "bug fixing": "debugging", "code repair": "debugging", "poems": "poem", "odd": "poem",
    }  # fmt: skip
    assert merge.compression() == 2.5
    assert merge.compression("synonyms") == 1.25
    with pytest.raises(ValueError, match="no labels to merge"):
        merge_labels({}, {})


def test_when_all_labels_are_rare_none_is_lost():
    merge = merge_labels({"a": 1, "b": 1}, dict(zip("ab", unit(0.0, 1.5), strict=True)), rare_below=5)
    assert set(merge.names) == {"a", "b"}
    assert merge.counts["rare joined"] == 2


def test_purity_by_hand():
    assert purity({"a": "x", "b": "x", "c": "y"}, list("aabc"), ["1", "1", "2", "2"]) == 0.75


@pytest.mark.parametrize(
    ("request_text", "phrase"),
    [
        ("Please write me a poem about autumn leaves", "write poem autumn"),
        ("How do I install docker on Ubuntu?", "ask how install docker"),
        ("can you fix the following python script", "fix python script"),
        ("5 + 7", ""),
    ],
)
def test_phrases_are_verb_and_object(request_text, phrase):
    assert task_phrase(request_text) == phrase


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("a Python script with pandas", ("Python",)),
        ("update the html and css, then main.js", ("HTML/CSS", "JavaScript")),
        ("in c++ or C#", ("C#", "C++")),
        ("let us go to the java island", ("Java",)),
        ("plot this in R with ggplot2", ("R",)),
        ("I go home, vitamin C is good, R&D", ()),
        ("golang error and a mysql query", ("Go", "SQL")),
        ("swift action is needed, rust on my car", ()),
    ],
)
def test_programming_languages_are_told_from_words(text, languages):
    assert languages_asked(text) == languages
    table = language_table([text, ""])
    assert table.columns[table.loc[0] == 1].sort_values().tolist() == list(languages)
    assert not table.loc[1].any()


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    words = ["cat purr whiskers", "dog bark leash", "sun beach sand", "rain cloud storm"]
    sizes = [40, 30, 20, 3]
    texts = [f"{words[k]} thing" for k, size in enumerate(sizes) for _ in range(size)]
    centres = np.array([[1, 0, 0], [0.9, 0.4, 0], [0, 0, 1], [0, 1, 0]], dtype=float)
    points = np.repeat(centres, sizes, axis=0) + 0.02 * rng.normal(size=(93, 3))
    return texts, (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_topics_have_readable_names_and_a_hierarchy_and_hide_the_small(blobs):
    texts, points = blobs
    topics = find_topics(points, texts, clusters=4, branches=2, minimum=10, seed=0)
    assert sorted(c.size for c in topics.clusters) == [20, 30, 40]
    assert (topics.member == HIDDEN).sum() == 3
    assert "storm" not in " ".join([*(c.name for c in topics.clusters), *topics.branches.values()])
    largest = max(topics.clusters, key=lambda c: c.size)
    assert set(largest.name.split(", ")) == {"cat", "purr", "whiskers"}
    assert sorted(c.size for c in topics.clusters if c.branch == largest.branch) == [30, 40]  # cats and dogs are near
    assert set(topics.branch_of().tolist()) == {HIDDEN, *topics.branches.keys() - {HIDDEN}}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"clusters": 100}, "93 texts do not make 100"), ({"clusters": 4, "minimum": 99}, "no cluster has 99")],
)
def test_impossible_topics_are_refused(blobs, options, message):
    texts, points = blobs
    with pytest.raises(ValueError, match=message):
        find_topics(points, texts, **options)


def test_names_never_hold_secrets():
    texts = ["call password: hunter2secret now"] * 5 + ["other words here"] * 5
    named = name_clusters(texts, np.array([0] * 5 + [1] * 5))
    assert "hunter" not in named[0]


def test_clusters_in_another_script_are_named_by_their_own_words_or_a_number():
    poems, garden = ["стихотворение про осень"] * 9, ["the garden needs watering roses"] * 9
    member = np.repeat([3, 5], 9)
    named = name_clusters(poems + garden, member)
    assert set(named[3].split(", ")) == {"стихотворение", "про", "осень"}
    assert name_clusters(poems + [f"{text} 나들이" for text in garden], member)[5].isascii()
    assert name_clusters(["12 + 7"] * 9 + garden, member)[3] == "topic 3"
    assert name_clusters(["12 + 7"] * 18, member) == {3: "topic 3", 5: "topic 5"}


def test_no_cluster_is_named_by_a_word_that_it_does_not_hold():
    texts = ["zebra"] * 9 + ["violin concert hall"] * 9
    assert name_clusters(texts, np.repeat([0, 1], 9)).keys() == {0, 1}
    assert name_clusters(texts, np.repeat([0, 1], 9))[0] == "zebra"


def test_the_map_keeps_neighbours_together(blobs):
    _, points = blobs
    places = flat_map(points, seed=0)
    assert places.shape == (93, 2)
    first = places[:40]
    assert np.linalg.norm(first - first.mean(0), axis=1).mean() < np.linalg.norm(first.mean(0) - places[70:90].mean(0))


def test_a_word_of_all_clusters_names_none():
    # "shared" is in 10 texts of each cluster, the clusters' own words in 9: frequency alone would name both "shared".
    texts = [word for own in ("zebra", "violin") for word in ["shared"] * 10 + [own] * 9 + ["plain"]]
    assert name_clusters(texts, np.repeat([0, 1], 20), words=1) == {0: "zebra", 1: "violin"}
