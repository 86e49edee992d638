import pytest
import torch

from lib import TenfoldError, zoo
from lib.usergpt import (
    Annotator,
    CalibratedAnnotator,
    Conversation,
    ConversationReader,
    Cut,
    EmbeddingAnnotator,
    Guide,
    annotate_corpus,
    draw,
    load_gold,
    load_taxonomy,
)
from lib.usergpt.similarity import LabelSpace, choose
from lib.usergpt.study.annotators import confusion_table
from lib.usergpt.study.peers import WordEncoder
from lib.usergpt.taxonomy import SALT, GoldLabel, agreement, as_gold


@pytest.fixture(scope="module")
def taxonomy():
    return load_taxonomy()


@pytest.fixture(scope="module")
def corpus():
    return draw(ConversationReader(zoo.stream_dataset("sharegpt", "all")), 300, salt=SALT)


@pytest.fixture(scope="module")
def annotator(taxonomy):
    return EmbeddingAnnotator(zoo.load_encoder(), taxonomy, task_cut=Cut(0.2, margin=0.05), domain_cut=Cut(0.1))


def test_labels_of_other_cuts_or_another_teacher_never_mix_in_a_folder(annotator, taxonomy, tmp_path):
    people = [Conversation(str(i), str(i), (f"write a poem about number {i}",)) for i in range(8)]
    encoder, gold = annotator.encoder, [GoldLabel(c.id, "ENT", ("CRE",)) for c in people]
    same, cuts = {"task_cut": Cut(0.2, margin=0.05), "domain_cut": Cut(0.1)}, {"task_cut": Cut(0.2)}
    others = [
        EmbeddingAnnotator(encoder, taxonomy, **(same | cuts)),
        EmbeddingAnnotator(encoder, taxonomy, **same, characters=9),
        CalibratedAnnotator(annotator, people, gold),
        CalibratedAnnotator(annotator, people, gold, threshold=0.5),
        CalibratedAnnotator(annotator, people[1:], gold[1:]),
    ]
    annotate_corpus(people, annotator, tmp_path)
    assert annotate_corpus(people, EmbeddingAnnotator(encoder, taxonomy, **same), tmp_path).done_before == 8
    for other in others:
        with pytest.raises(TenfoldError, match="another model or form, or of other settings"):
            annotate_corpus(people, other, tmp_path)
    assert len({annotator.settings(), *(other.settings() for other in others)}) == 1 + len(others)


def test_the_taxonomy_holds_what_the_paper_names(taxonomy):
    assert set(taxonomy.overlooked()) == {"ADV", "DES", "PLA", "DIS", "ANA", "EVA"}
    shares = taxonomy.paper_shares("tasks")
    assert sum(shares[code] for code in taxonomy.overlooked()) == pytest.approx(0.233)
    assert taxonomy.paper_shares("domains") == {"TEC": 0.25}
    assert taxonomy.groups()["DBG"] == "coding assistance"
    assert taxonomy.names("tasks")["PLA"] == "planning"


def test_a_broken_taxonomy_is_one_sentence(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[tasks]]\ncode = "A"\n')
    with pytest.raises(TenfoldError, match=r"mine\.toml is no taxonomy"):
        load_taxonomy(path)
    row = 'code = "A"\nname = "a"\ndefinition = "d"\nexamples = ["e"]\n'
    path.write_text(f"[[tasks]]\n{row}[[tasks]]\n{row}[[domains]]\n{row}")
    with pytest.raises(TenfoldError, match="a code of its own"):
        load_taxonomy(path)
    both = f"[[tasks]]\n{row}[[domains]]\n{row}[[shown]]\nrequest = 'r'\ntask = 'A'\n"
    path.write_text(f"{both}domain = 'B'\n")
    with pytest.raises(TenfoldError, match=r"\[\[shown\]\] request has a code that no label has: A, B"):
        load_taxonomy(path)
    path.write_text(both)
    with pytest.raises(TenfoldError, match=r"no taxonomy .*domain"):
        load_taxonomy(path)
    path.write_text(f"{both}domain = 'OTH'\n".replace('"a"', '"a, b"'))
    with pytest.raises(ValueError, match="names without one"):
        Guide(load_taxonomy(path))


def test_plain_requests_get_their_label(annotator):
    assert isinstance(annotator, Annotator)
    requests = {
        "Translate this sentence into Italian": "TRA",
        "Summarize this article in five bullet points": "SUM",
        "Plan a two week trip itinerary through Japan": "PLA",
        "Write a poem about autumn leaves": "CRE",
        "Why do I get this error: NullPointerException": "DBG",
    }
    conversations = [Conversation(text, text, (text,)) for text in requests]
    found = list(annotator.annotate(conversations))
    assert [a.id for a in found] == list(requests)
    assert {a.id: a.tasks[0] for a in found} == requests


def test_scores_are_the_mean_of_the_nearest_cosines(taxonomy):
    encoder = zoo.load_encoder()
    space = LabelSpace(taxonomy, "domains", encoder, nearest=2)
    embeddings = encoder.encode(["a recipe", "the court case"])
    texts = taxonomy.texts("domains")["LAW"]
    cosines = (encoder.encode(list(texts)) @ embeddings[1]).sort(descending=True).values
    place = space.codes.index("LAW")
    torch.testing.assert_close(space.scores(embeddings)[1, place], cosines[:2].mean(), atol=1e-5, rtol=0)


def test_the_cut_abstains_and_gives_several():
    scores = torch.tensor([[0.1, 0.5, 0.48], [0.1, 0.0, 0.05], [0.3, 0.9, 0.2]])
    assert choose(scores, "abc", Cut(0.2, margin=0.05)) == [("b", "c"), (), ("b",)]
    assert choose(scores, "abc", Cut(-1.0, margin=2.0, most=2)) == [("b", "c"), ("a", "c"), ("b", "a")]


def test_a_cut_that_labels_nothing_is_refused(taxonomy):
    with pytest.raises(ValueError, match=r"a cut at 1\.5 with margin 0"):
        EmbeddingAnnotator(zoo.load_encoder(), taxonomy, task_cut=Cut(1.5), domain_cut=Cut(0.0))


def test_gold_is_the_stated_random_draw(taxonomy, corpus):
    assert set(load_gold(taxonomy)) == {c.id for c in corpus}


def test_gold_refuses_unknown_codes_and_repeated_ids(taxonomy, tmp_path):
    path = tmp_path / "g.csv"
    path.write_text("id,domain,tasks\na,TEC,QAN\nb,TEC,XXX\n")
    with pytest.raises(TenfoldError, match="b has a code that the taxonomy lacks"):
        load_gold(taxonomy, path)
    path.write_text("id,domain,tasks\na,TEC,QAN\na,TEC,GEN\n")
    with pytest.raises(TenfoldError, match="an id comes twice"):
        load_gold(taxonomy, path)


def test_agreement_and_confusion_by_hand():
    gold = {
        i: GoldLabel(i, d, tuple(t.split()))
        for i, d, t in [("1", "TEC", "QAN GEN"), ("2", "LAW", "SUM"), ("3", "TEC", "DBG")]
    }
    other = {
        i: GoldLabel(i, d, tuple(t.split()))
        for i, d, t in [("1", "TEC", "GEN"), ("2", "OTH", "SUM"), ("3", "TEC", "OTH")]
    }
    found = agreement(gold, other, "tasks")
    assert (found.accuracy, found.any_of, found.abstained, found.n) == (1 / 3, 2 / 3, 1 / 3, 3)
    assert found.jaccard == pytest.approx((0.5 + 1 + 0) / 3)
    table = confusion_table(gold, other, "tasks", {code: code for code in ("QAN", "GEN", "SUM", "DBG", "OTH")})
    assert table.loc["QAN", "GEN"] == table.loc["SUM", "SUM"] == table.loc["DBG", "OTH"] == 1
    assert table.to_numpy().sum() == 3
    with pytest.raises(TenfoldError, match="fewer than two"):
        agreement(gold, {}, "tasks")


def test_zero_shot_beats_chance_on_gold(annotator, taxonomy, corpus):
    gold = load_gold(taxonomy)
    chosen = corpus[:60]
    found = {a.id: as_gold(a) for a in annotator.annotate(chosen)}
    assert agreement(gold, found, "domains").kappa > 0.2
    assert agreement(gold, found, "tasks").kappa > 0.05


def test_the_word_encoder_finds_shared_words():
    corpus = [f"{a} {b}" for a in ("cat", "dog", "sun", "rain", "code", "song") for b in ("big", "small", "old")] * 2
    encoder = WordEncoder(corpus, dim=8)
    found = encoder.encode(["big cat", "old cat", "small code", "unknown"])
    assert found[0] @ found[1] > found[0] @ found[2]
    torch.testing.assert_close(found.norm(dim=-1), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="2 texts cannot span 8 dimensions"):
        WordEncoder(["a", "b"], dim=8)


def test_the_labellers_second_pass_is_a_part_of_the_first_and_agrees(taxonomy):
    first, second = load_gold(taxonomy), load_gold(taxonomy, "gold_second")
    assert second.keys() < first.keys()
    assert len(second) >= 60
    assert agreement(first, second, "tasks").kappa > 0.6
    assert agreement(first, second, "domains").kappa > 0.6
