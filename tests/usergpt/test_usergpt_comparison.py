"""The experiment's tables: annotators against a person, corrected shares of both sides, pools side by side, merging."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib import TenfoldError
from lib.core.chat import ChatFailed, Reply
from lib.usergpt import Conversation, GoldLabel, labelled, share_table
from lib.usergpt.compare import divergence
from lib.usergpt.similarity import LabelSpace
from lib.usergpt.study import annotators, comparison, replies
from lib.usergpt.topics import HIDDEN, Cluster, Topics

CODES = ("QAN", "SUM", "OTH")


class Space(LabelSpace):
    """Scores that are the embeddings themselves."""

    def __init__(self, codes):
        self.codes = codes

    def scores(self, embeddings):
        return torch.as_tensor(embeddings, dtype=torch.float32)


SPACES = {"tasks": Space(("QAN", "SUM")), "domains": Space(("TEC", "LAW"))}
SCORES = torch.tensor([[0.35, 0.05], [0.1, 0.3], [0.05, 0.05], [0.31, 0.1]])
TRUTH = {
    "a": GoldLabel("a", "TEC", ("QAN",)), "b": GoldLabel("b", "LAW", ("SUM",)),
    "c": GoldLabel("c", "OTH", ("OTH",)), "d": GoldLabel("d", "TEC", ("QAN", "SUM")),
}  # fmt: skip


def test_the_best_cuts_label_as_the_person_does():
    cuts = annotators.best_cuts(TRUTH, SPACES, SCORES, list(TRUTH))
    found = annotators.zero_shot_labels(SPACES, SCORES, list(TRUTH), cuts)
    assert [label.tasks for label in found.values()] == [("QAN",), ("SUM",), ("OTH",), ("QAN",)]
    assert annotators.right(TRUTH, found, "domains") == [1.0] * 4
    quality = annotators.quality_table(TRUTH, {"cut": found, "one": {"a": TRUTH["a"], "b": TRUTH["a"]}}, seed=0)
    assert quality["accuracy"].tolist() == [1.0, 1.0, 0.5, 0.5]
    assert quality["kappa"].tolist()[:2] == [1.0, 1.0]


def test_an_annotator_is_held_against_the_commonest_label():
    codes = {"tasks": CODES, "domains": ("TEC", "LAW", "OTH")}
    always = annotators.always_commonest(TRUTH, list(TRUTH), codes)
    assert always["b"] == GoldLabel("b", "TEC", ("QAN",))
    probable = {"tasks": np.eye(3)[[0, 1, 2]], "domains": np.eye(3)[[0, 1, 2]]}
    labels = annotators.most_probable(list("abc"), probable, codes)
    assert labels == {i: GoldLabel(i, TRUTH[i].domain, TRUTH[i].tasks) for i in "abc"}
    lead = annotators.lead(TRUTH, labels, always, seed=0)
    assert (lead.value, lead.n) == (pytest.approx(2 / 3), "3 conversations")  # "a" is of the commonest type
    assert annotators.frequencies(list(TRUTH.values()), "tasks", (*CODES, "DBG")).tolist() == [0.5, 0.5, 0.25, 0.125]
    table = annotators.confusion_table(TRUTH, always, "tasks", {code: code.lower() for code in (*CODES, "DBG")})
    assert table["qan"].to_dict() == {"qan": 2, "sum": 1, "oth": 1}  # no row for a type that nobody has
    assert table.to_numpy().sum() == 4


def test_what_a_model_told_of_some_is_weighed_by_one_prior_or_by_one_of_each():
    told = np.log([[0.6, 0.4], [0.8, 0.2]])
    frame = pd.DataFrame({"id": ["a", "b"], "told_tasks": list(told), "told_domains": list(told)})
    codes = {"tasks": ("QAN", "SUM"), "domains": ("TEC", "LAW")}
    even = annotators.with_prior(frame, dict.fromkeys(codes, np.array([0.5, 0.5])), codes)
    assert {i: label.tasks for i, label in even.items()} == {"a": ("SUM",), "b": ("QAN",)}
    sure = annotators.with_prior(frame, dict.fromkeys(codes, np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])), codes)
    assert {i: label.domain for i, label in sure.items()} == {"a": "TEC", "b": "LAW"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"topics": 9}, "topics = 9 is above sample = 5: ask for fewer"),
        ({"endpoint": "http://x/v1"}, "name the weaker model, the stronger one and the judge"),
    ],
)
def test_parameters_that_cannot_go_together_are_refused(changed, message):
    fine = {"chat_gold": 2, "gold": 2, "topic_branches": 1, "topics": 5, "sample": 5, "endpoint": ""}
    fine |= {"endpoint_models": ["", "", ""]}
    comparison.check_parameters(fine)
    with pytest.raises(TenfoldError, match=message):
        comparison.check_parameters(fine | changed)


def test_corrected_shares_of_all_and_of_a_part():
    rng = np.random.default_rng(0)
    gold = [GoldLabel(str(i), "TEC", (CODES[i % 2],)) for i in range(40)]
    groups, many = [str(i) for i in range(200)], np.eye(3)[rng.integers(0, 2, 200)]
    correction = comparison.Correction(gold, [f"g{i}" for i in range(40)], groups, seed=0)
    right = np.eye(3)[np.arange(40) % 2]
    users = correction.shares("tasks", CODES, many, right)
    assert users.point[:2] == pytest.approx([(20 + many[:, 0].sum()) / 240, (20 + many[:, 1].sum()) / 240])
    part = correction.shares("tasks", CODES, many, right, rows=np.arange(100))
    assert part.n == "40 labelled, 100 predicted conversations"
    probable, own = correction.calibrated("tasks", CODES, many * 0.3, right * 0.3)
    assert (probable.argmax(1) == many.argmax(1)).all()
    assert (own.argmax(1) == right.argmax(1)).all()


@pytest.fixture
def sides():
    names = [str(i) for i in range(60)]
    users = labelled(np.eye(3)[np.arange(60) % 3], names, CODES, unit="items")
    return users, labelled(np.eye(3)[np.zeros(60, dtype=int)], names, CODES, unit="items", seed=1)


def test_what_benchmarks_overtest_and_what_resampling_alone_reaches(sides):
    over = comparison.overtested(*sides, ["QAN", "SUM"])
    assert (over.value, over.n) == (pytest.approx(1 / 3), "60 items; 60 items")
    assert 0.2 < over.low < over.value < over.high < 0.5
    one = divergence(*sides)
    found = comparison.beyond_resampling(one, np.linspace(0, 0.1, 1001))
    assert found["estimate"] == pytest.approx(one.value - 0.0975)
    assert found["ci"] == pytest.approx((one.ci[0] - 0.0975, one.ci[1] - 0.0975))


def test_collections_of_benchmarks_apart():
    rows = {"few": [GoldLabel("f", "TEC", ("QAN", "SUM"))] * 3, "many": [GoldLabel("m", "TEC", ("OTH",))] * 30}
    rows = {side: [GoldLabel(f"{side}{i}", r.domain, r.tasks) for i, r in enumerate(own)] for side, own in rows.items()}
    few, many = comparison.of_each_collection(rows, "tasks", CODES, seed=0)
    assert (few.point.tolist(), many.n) == ([0.5, 0.5, 0.0], "30 families")


def test_tables_of_two_sides(sides):
    table = comparison.two_sides({"both": ["SUM", "OTH"]}, *sides, {"SUM": 0.1, "OTH": 0.2})
    assert table["share"].tolist() == pytest.approx([2 / 3, 0.0])
    assert table["paper"].tolist()[0] == pytest.approx(0.3)
    shares = share_table(*sides, {code: code.lower() for code in CODES}, {})
    long = comparison.sides_of(shares.assign(users=shares["users"] - 0.5))
    assert long["side"].value_counts().to_dict() == {"users": 3, "benchmarks": 3}
    assert long["share"].tolist() == [0.0] * 3 + [1.0, 0.0, 0.0]
    coarse = comparison.as_groups(sides[0], {"QAN": "g", "SUM": "h", "OTH": "g"})
    assert coarse.codes == ("g", "h")
    assert coarse.point == pytest.approx([2 / 3, 1 / 3])
    one = divergence(*sides)
    listed = comparison.divergence_table({"x": one, "y": one}, {"x": np.full(100, 0.25)}, {"a against b": one})
    assert listed["comparison"].tolist() == ["users against benchmarks", "users, y", "a against b"]
    assert listed["null"].tolist()[0] == 0.25
    assert np.isnan(listed["null"].tolist()[1])


def test_coverage_is_weighted_by_the_label():
    near, weight = np.array([0.2, 0.4, 0.9, 0.9] * 9), np.array([[1.0, 0], [1.0, 0], [0, 1.0], [0, 0.5]] * 9)
    threads = [str(i) for i in range(36)]
    gold = [GoldLabel(str(i), "TEC", (code,)) for i, code in enumerate(["QAN", "SUM", "QAN", "SUM", "OTH"])]
    correction = comparison.Correction(gold, list("abcde"), threads, seed=0)
    names = {"QAN": "a", "SUM": "b", "OTH": "taught by one label"}
    table = comparison.coverage_table(near, np.hstack([weight, 1 - weight[:, :1]]), correction, names)
    assert table.set_index("task")["cosine"].to_dict() == pytest.approx({"b": 0.9, "a": 0.3})


class Labeller:
    """Labels every input with a type that is new in each call, but for one that comes again and again."""

    model = "labeller"

    def __init__(self):
        self.asked = []

    def complete_many(self, questions, decoding=None, *, attempt=0):
        self.asked.append(len(questions))
        block = "** Output {} **\n[domain] d\n[summary] s\n[task type] {}\n"
        return [Reply(("".join(block.format(i, f"t{len(self.asked)}{i}" if i < 3 else "knitting") for i in (1, 2, 3)),))
                for _ in questions]  # fmt: skip


def test_pools_grow_side_by_side_and_distinct_labels_are_counted():
    corpus = [Conversation(str(i), "t", (f"request {i}",)) for i in range(400)]
    model = Labeller()
    growth = replies.pool_runs(model, corpus, runs=2, calls=2, rules=["fixed", "published"])
    assert growth.groupby(["rule", "run"])["distinct"].last().tolist() == [5, 5, 5, 5]
    sizes = growth.groupby("rule")["pool"].max()
    assert sizes["published"] == sizes["fixed"] + 1
    assert model.asked == [2, 2]  # rules agree until their pools differ: two prompts in the place of four


class Namer:
    """Names code generation for every other request and technology for all, and tells what it thought of others."""

    model = "namer"

    def complete_many(self, questions, decoding=None, *, attempt=0):
        def told(token, **shares):
            rows = [{"token": name, "logprob": float(np.log(share))} for name, share in shares.items()]
            return {"token": token, "logprob": rows[0]["logprob"], "top_logprobs": rows}

        replies = []
        for at in range(len(questions)):
            first = told("advice", advice=0.8, trans=0.1) if at % 2 else told("trans", trans=0.6, advice=0.3)
            replies.append([first, told(",", **{",": 1.0}), told(" tech", **{" tech": 0.9})])
        return [
            Reply(("advice, technology" if at % 2 else "translation, technology",), logprobs=(row,))
            for at, row in enumerate(replies)
        ]


def test_a_guide_is_asked_and_its_prior_is_taken_out():
    people = [Conversation(str(i), "t", (f"request {i}",)) for i in range(24)]
    frame = replies.ask_guide(Namer(), people)
    labels = annotators.guide_labels(frame)
    assert labels["3"] == GoldLabel("3", "TEC", ("ADV",))
    assert np.stack(frame["told_tasks"]).shape == (24, 23)
    assert np.stack(frame["told_domains"]).argmax(1).tolist() == [0] * 24
    told = np.log([[0.6, 0.4], [0.8, 0.2]])  # the first label is likely of both, and likelier of the second
    found = annotators.reweighed(told, np.array([0.5, 0.5]), trust=1.0)
    assert found == pytest.approx(np.array([[0.6 / 0.7, 0.4 / 0.3], [0.8 / 0.7, 0.2 / 0.3]])
                                  / np.array([[0.6 / 0.7 + 0.4 / 0.3], [0.8 / 0.7 + 0.2 / 0.3]]))  # fmt: skip
    assert found.argmax(1).tolist() == [1, 0]
    own = annotators.reweighed(told, np.array([[0.9, 0.1], [0.1, 0.9]]))
    assert own.argmax(1).tolist() == [0, 1]
    assert annotators.reweighed(np.zeros((2, 2)), np.array([0.3, 0.7])) == pytest.approx(np.array([[0.3, 0.7]] * 2))


class Judge:
    """Says PASS where the answer holds a word, and fails on another."""

    def __init__(self, passes):
        self.passes, self.model = passes, "judge"

    def complete_many(self, questions, decoding=None, *, attempt=0):
        return [
            ChatFailed("u", "time-out") if "lost" in q else Reply(("PASS" if self.passes in q else "FAIL",))
            for q in questions
        ]


class Echo:
    """Answers with its own name."""

    def __init__(self, name):
        self.model = name

    def complete_many(self, questions, decoding=None, *, attempt=0):
        return [Reply((f"{self.model} says {question}",)) for question in questions]


def test_failure_rates_are_of_cases_that_all_have_a_verdict_on():
    models = {"weaker": Echo("weak"), "stronger": Echo("strong")}
    rates = comparison.failures(models, Judge("strong says"), {"ADV": ["a", "lost", "b"], "DES": ["c"]})
    assert rates.to_dict("list") == {
        "group": ["ADV", "ADV", "DES"], "case": [0, 2, 0], "weaker": [1.0] * 3, "stronger": [0.0] * 3,
    }  # fmt: skip
    more = pd.DataFrame({"group": list("aabb"), "weaker": [1.0, 0, 1, 1], "stronger": [0.0, 0, 1, 1]})
    assert comparison.largest_gap(more, seed=0).value == 0.0


def test_merging_leaves_groups_of_threads_out_in_turn():
    phrases = {f"{word}{i}": word for word in ("write poem", "compose poem", "fix code") for i in range(20)}
    vectors = {"write poem": [1.0, 0.0], "compose poem": [0.99, 0.14], "fix code": [0.0, 1.0]}
    merges = comparison.Merging(
        phrases, {i: i for i in phrases}, {k: np.array(v) for k, v in vectors.items()}, groups=4, k=1, rare_below=2
    )
    assert merges.at(0.9).counts["neighbours joined"] == 2
    kept = merges.at(0.9, without=0)
    assert kept.compression() == 1.5
    estimate = merges.compression(0.9, "neighbours joined")
    assert (estimate.value, estimate.low, estimate.high) == (1.5, 1.5, 1.5)
    assert estimate.n == "60 conversations with a phrase, 4 groups left out in turn"
    curve = merges.curve([0.9, 0.999], {"write poem0": "CRE", "fix code0": "DBG"})
    assert curve["compression"].tolist() == [1.5, 1.0]
    assert curve["purity"].tolist() == [1.0, 1.0]
    kinds = {i: "DBG" if phrase == "fix code" else "CRE" for i, phrase in phrases.items()}
    assert merges.beyond_chance(0.9, kinds, seed=0).low > 0.2  # pure, where two of three are of one kind
    mixed = {i: "AB"[number % 2] for number, i in enumerate(phrases)}  # every label has as many of both
    assert merges.beyond_chance(0.9, mixed, seed=0).low < 0


def test_topics_stand_by_size_at_the_middle_of_their_members():
    member = np.array([0, 0, 1, 1, 1, HIDDEN])
    found = Topics(member, (Cluster(0, 2, "few", 0), Cluster(1, 3, "more", 1)), {0: "left", 1: "right"})
    places = np.array([[0.0, 0], [0, 2], [4, 0], [5, 1], [9, 9], [50, 50]])
    table = comparison.topic_table(found, places)
    assert table.to_numpy().tolist() == [["more", 3, "right", 5.0, 1.0], ["few", 2, "left", 0.0, 1.0]]
