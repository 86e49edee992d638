"""Every expert call is counted, budgets hold across crashes, and judges rank what they must."""

import json
import time

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from lib import TenfoldError, zoo
from lib.preference import (
    BudgetExceeded,
    ByComparison,
    ChatJudge,
    Judge,
    JudgeFailed,
    Ledger,
    Metered,
    RecordedJudge,
    ReferenceJudge,
    RewardModelJudge,
    RougeJudge,
    questions,
    score_all,
    win_rate,
)
from lib.preference.chat_judge import read_verdict
from lib.preference.judges import copied_share


class Length:
    """Longer is better."""

    def score(self, prompt, responses):
        return [float(len(r)) for r in responses]

    def prefer(self, prompt, a, b):
        return 0.5 if len(a) == len(b) else float(len(a) > len(b))


@pytest.fixture(scope="module")
def real(tokenizer):
    return questions(zoo.load_dataset("sharegpt", "test", 2000), tokenizer, limit=40)


def test_the_ledger_refuses_before_it_is_passed_and_survives(tmp_path):
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(5, path)
    judge = Metered(Length(), ledger, purpose="seed labels")
    assert judge.score("x", ["a", "bb", "ccc"]) == [1, 2, 3]
    with pytest.raises(BudgetExceeded, match="3 calls were asked for, but 2 of 5 are left"):
        judge.score("x", ["a", "b", "c"])
    assert ledger.spent == 3  # the refused request cost nothing
    again = Ledger(5, path)
    assert again.left == 2
    assert Metered(Length(), again).prefer("x", "a", "bb") == 0
    assert Ledger(5, path).left == 1
    with pytest.raises(TenfoldError, match="already holds 4 expert calls"):
        Ledger(3, path)


def test_a_budget_can_be_spent_to_its_last_call():
    ledger = Ledger(3)
    ledger.spend(2)
    ledger.spend(1)
    assert (ledger.spent, ledger.left) == (3, 0)
    with pytest.raises(BudgetExceeded, match="0 of 3 are left"):
        ledger.spend(1)


def test_calls_that_fail_are_counted_too(tmp_path):
    class Broken(Length):
        def score(self, prompt, responses):
            raise RuntimeError("down")

    ledger = Ledger(10, tmp_path / "ledger.sqlite")
    with pytest.raises(JudgeFailed, match="down"):
        Metered(Broken(), ledger).score("x", ["a", "b"])
    assert Ledger(10, tmp_path / "ledger.sqlite").spent == 2


def test_bad_ledgers(tmp_path):
    with pytest.raises(ValueError, match="negative"):
        Ledger(-1)
    with pytest.raises(ValueError, match="stays counted"):
        Ledger(3).spend(-1)
    (tmp_path / "l").write_text('{"calls": 1, "purpose": ""}')
    with pytest.raises(TenfoldError, match="is no journal"):
        Ledger(3, tmp_path / "l")


def test_an_echo_ranks_last_on_real_prompts_and_does_not_without_the_penalty(real):
    encoder, references = zoo.load_encoder(), {q.text: q.answer for q in real}
    judge, plain = ReferenceJudge(encoder, references), ReferenceJudge(encoder, references, weight=0.0)
    beaten = 0
    for index, q in enumerate(real[:24]):
        elsewhere = [" ".join(real[(index + step) % len(real)].answer.split()[:30]) for step in (1, 2)]
        answers = [" ".join(q.answer.split()[:30]), *elsewhere, ""]
        answers = [a for a in answers if copied_share(q.text, a) <= judge.free]
        echoes = [q.text, f"{q.text} {q.text}", q.text.upper()]
        assert all(copied_share(q.text, echo) == 1 for echo in echoes)
        scores = judge.score(q.text, echoes + answers)
        assert max(scores[:3]) <= -1  # the stated guarantee, on every prompt
        assert max(scores[:3]) <= min(scores[3:])
        similar = plain.score(q.text, [q.text, *elsewhere])
        beaten += similar[0] > max(similar[1:])
    assert beaten > 20  # similarity alone would prefer the echo to other texts almost always


def test_real_answers_are_rarely_taken_for_copies(real):
    shares = torch.tensor([copied_share(q.text, " ".join(q.answer.split()[:30])) for q in real])
    assert float((shares > 0.5).double().mean()) < 0.1


def test_the_penalty_is_what_it_says():
    class Same:
        def encode(self, texts):
            return torch.tensor([[1.0, 0.0]]).expand(len(texts), -1)

    judge = ReferenceJudge(Same(), {"a b c d e": "ref"}, weight=2.0, free=0.4)
    assert copied_share("a b c d e", "a b c d x y") == pytest.approx(4 / 6)
    found = judge.score("a b c d e", ["a b c d x y", "x y z", "", "a"])
    assert found == pytest.approx([1 - 2 * (4 / 6 - 0.4) / 0.6, 1.0, 0.0, 1 - 2.0])
    assert judge.prefer("a b c d e", "x y z", "q r s") == 0.5
    with pytest.raises(ValueError, match="no reference answer"):
        judge.score("another", ["x"])
    with pytest.raises(ValueError, match="make no penalty"):
        ReferenceJudge(Same(), {}, free=1.0)


def test_rouge_judges_by_the_beginning_of_the_answer():
    judge = RougeJudge({"q": "the cat sat on the mat and then it slept for a very long while"}, words=6)
    assert judge.score("q", ["the cat sat on the mat", "dogs bark"]) == [1.0, 0.0]
    assert judge.prefer("q", "the cat", "dogs bark") == 1
    echo = RougeJudge({"what is a cat": "what is a cat you ask"}, weight=1.0)
    assert echo.score("what is a cat", ["what is a cat"])[0] <= 0 < echo.score("what is a cat", ["you ask"])[0]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("B", 0.0), ("b.", 0.0), ("It is a tie.", 0.5), ("A tie", 0.5), ("Answer B", 0.0), ("**Verdict: A**", 1.0),
        ('{"verdict": "tie"}', 0.5), ('```json\n{"verdict": "A"}\n```', 1.0), ("Verdict: A ... no. Verdict: B", 0.0),
        ("<think>A is good. Verdict: A</think>Verdict: B", 0.0), ("<think>Verdict: A, and then it ran out", None),
        ("A better answer is B", None), ("Both help; a bit of each", None), ("who knows", None), ("", None),
    ],
)  # fmt: skip
def test_the_contract_of_a_comparison(reply, verdict):
    assert read_verdict(reply, compare=True) == verdict


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("On a scale from 1 to 10, I give 9.", 9), ("I would say 8/10", 8), ("8.5/10", 8.5), ("7 out of 10", 7),
        ("Verdict: 10", 10), ('{"verdict": 3}', 3), ("2 reasons: it is 6", None), ("11", None), ("0", None),
        ("none", None), ("<think>1, 2</think>\n4", 4), ("The verdict is 5", 5), ("10", 10), ("1-10: 4", 4),
    ],
)  # fmt: skip
def test_the_contract_of_a_grade(reply, grade):
    assert read_verdict(reply, compare=False) == grade


def test_chat_judge_asks_both_orders_keeps_ties_and_asks_once_more():
    asked = []

    def always_first(question):
        asked.append(question)
        return "A"

    judge = ChatJudge(always_first)
    assert judge.prefer("q", "one", "two") == 0.5  # position bias cancels
    assert asked[0].index("one") < asked[0].index("two")
    assert asked[1].index("two") < asked[1].index("one")
    assert ChatJudge(lambda q: "tie").prefer("q", "one", "two") == 0.5
    assert ChatJudge(lambda q: "A" if q.index("good") < q.index("bad") else "b.").prefer("q", "good", "bad") == 1
    lost = ChatJudge(lambda q: "who knows")
    with pytest.raises(JudgeFailed, match="no verdict that can be read, twice"):
        lost.score("q", ["x"])
    assert (lost.asked, lost.unreadable) == (2, 2)
    hesitant = ChatJudge(lambda q: "7" if "and nothing else" in q else "well, 7 or 8")
    assert hesitant.score("q", ["x"]) == [7]
    assert (hesitant.asked, hesitant.unreadable) == (2, 1)
    ledger = Ledger(3)
    Metered(judge, ledger).prefer("q", "one", "two")
    assert ledger.spent == 2  # both orders are calls


def test_chat_judge_by_a_local_model(tiny_policy, tokenizer):
    judge = ChatJudge.local(tiny_policy, tokenizer, max_new_tokens=3)
    with pytest.raises(ValueError, match="context of 128"):
        judge.prefer("a question " * 60, "x", "y")


def test_chat_judge_by_an_endpoint_that_takes_json_or_not(chat_server, tmp_path):
    chat_server.script += ['{"verdict": "B"}', "Verdict: B", 400, "Verdict: A", "Verdict: tie", 401]
    judge = ChatJudge.endpoint(chat_server.url, "m", key="k", journal=Ledger(9, tmp_path / "ledger.sqlite"))
    assert judge.prefer("q", "x", "y") == 0.5
    assert chat_server.asked[0]["response_format"]["type"] == "json_schema"
    assert judge.prefer("q", "u", "v") == 0.75
    assert "response_format" not in chat_server.asked[-1]
    assert chat_server.headers[0]["Authorization"] == "Bearer k"
    assert judge.identity == "m"
    again = ChatJudge.endpoint(chat_server.url, "m", journal=Ledger(9, tmp_path / "ledger.sqlite"))
    assert again.prefer("q", "x", "y") == 0.5  # kept: not asked again
    with pytest.raises(TenfoldError, match="401"):
        score_all(judge, ["q"], [["x"]], progress=False)  # a refusal for good stops at once
    assert len(chat_server.asked) == 6


def test_a_server_that_stumbles_costs_its_own_prompt_only(chat_server):
    chat_server.answer = lambda request: 400 if "Question:\nbad" in request["messages"][-1]["content"] else "Verdict: 4"
    judge = ChatJudge.endpoint(chat_server.url, "m", concurrency=4)
    prompts = ["good 1", "bad", *(f"good {i}" for i in range(2, 9))]
    with pytest.raises(JudgeFailed, match=r"1 of 9 could not be judged, the others are kept. First: .*prompt 'bad'"):
        score_all(judge, prompts, [["x"]] * 9, progress=False)
    assert sum("Question:\ngood" in question for question in chat_server.questions) >= 8


def test_many_questions_run_at_once(chat_server):
    chat_server.answer = lambda request: chat_server.delay(0.2, "Verdict: 4")
    judge = ChatJudge.endpoint(chat_server.url, "m", concurrency=8)
    began = time.monotonic()
    assert score_all(judge, [f"q{i}" for i in range(16)], [["x"]] * 16, progress=False).tolist() == [[4.0]] * 16
    assert time.monotonic() - began < 16 * 0.2


class Prefers:
    """Only compares: the longer text is better, with a chance of 3/4."""

    identity = "length"

    def __init__(self):
        self.asked = []

    def prefer(self, prompt, a, b):
        self.asked.append((a, b))
        return 0.5 if len(a) == len(b) else 0.75 if len(a) > len(b) else 0.25


def test_a_judge_that_only_compares_scores_by_its_mean_preference():
    judge = Prefers()
    assert ByComparison(judge).score("q", ["aa", "a", "aa", "aaa"]) == [0.5, 0.25, 0.5, 0.75]
    assert len(judge.asked) == 3  # three different texts
    assert score_all(judge, ["q"], [["a", "a"]], progress=False).tolist() == [[0.5, 0.5]]
    ledger, judge = Ledger(3), Prefers()
    assert Metered(judge, ledger).score("q", ["aa", "a", "aaa"]) == [0.5, 0.25, 0.75]
    assert ledger.spent == len(judge.asked) == 3
    Metered(judge, ledger).score("q", ["aa", "a", "aaa"])
    assert ledger.spent == 3
    judge.prefer = lambda *texts: 2
    with pytest.raises(JudgeFailed, match="no chance"):
        score_all(judge, ["q"], [["a", "b"]], progress=False)


def test_threads_share_a_budget_to_its_last_call():
    ledger, asked = Ledger(40), []

    class Slow(Length):
        concurrency = 8

        def score(self, prompt, responses):
            asked.append(prompt)
            time.sleep(0.001)
            return super().score(prompt, responses)

    metered = Metered(Slow(), ledger)
    with pytest.raises(BudgetExceeded):
        score_all(metered, [f"q{i % 50}" for i in range(100)], [["x"]] * 100, progress=False)
    assert ledger.spent == len(asked) == 40


def test_a_judge_that_always_fails_is_given_up_soon():
    class Broken(Length):
        asked = 0

        def score(self, prompt, responses):
            self.asked += 1
            raise RuntimeError("down")

    judge = Broken()
    with pytest.raises(JudgeFailed, match="down"):
        score_all(judge, ["q"] * 50, [["x"]] * 50, progress=False)
    assert judge.asked == 3


def test_reward_models(tokenizer):
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_labels=1,
    )  # fmt: skip
    torch.manual_seed(0)
    judge = RewardModelJudge(LlamaForSequenceClassification(config), tokenizer)
    together = judge.score("q", ["yes", "a much longer answer than that"])
    assert together == pytest.approx(
        [judge.score("q", [r])[0] for r in ("yes", "a much longer answer than that")], abs=1e-5
    )
    p = judge.prefer("q", "yes", "a much longer answer than that")
    assert p == pytest.approx(float(torch.sigmoid(torch.tensor(together[0] - together[1]))))
    judge.max_length = 64
    with pytest.raises(
        ValueError, match=r"the exchange has \d+ tokens and the reward model reads 64: raise max_length"
    ):
        judge.score("word " * 100, ["good", "bad"])
    with pytest.raises(JudgeFailed, match="reward model reads 64"):
        score_all(judge, ["word " * 100], [["good", "bad"]], progress=False)
    config.num_labels = 2
    with pytest.raises(ValueError, match="one output"):
        RewardModelJudge(LlamaForSequenceClassification(config), tokenizer)


def test_recorded_labels(tmp_path):
    path = tmp_path / "labels.jsonl"
    rows = [
        {"prompt": "q", "response": "x", "score": 3},
        {"prompt": "q", "response": "y", "score": 4},
        {"prompt": "q", "a": "u", "b": "v", "preference": 0.75},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    judge = RecordedJudge(path)
    assert judge.score("q", ["y", "x"]) == [4, 3]
    assert (judge.prefer("q", "x", "y"), judge.prefer("q", "v", "u")) == (0, 0.25)
    with pytest.raises(TenfoldError, match="no label"):
        judge.score("q", ["z"])
    path.write_text('{"prompt": "q"}')
    with pytest.raises(TenfoldError, match="line 1"):
        RecordedJudge(path)
    with pytest.raises(TenfoldError, match="not there"):
        RecordedJudge(tmp_path / "none")


def test_judges_that_raise_or_give_nan_are_named_with_the_prompt():
    class Nan(Length):
        def score(self, prompt, responses):
            return [float("nan")] * len(responses)

    class Raises(Length):
        def score(self, prompt, responses):
            raise ValueError("boom")

    for judge, message in ((Nan(), "one finite number"), (Raises(), "Raises failed on the prompt 'q'.*boom")):
        with pytest.raises(JudgeFailed, match=message):
            score_all(judge, ["q"], [["a", "b"]], progress=False)
    with pytest.raises(ValueError, match="same number of responses"):
        score_all(Length(), ["q", "r"], [["a"], ["b", "c"]], progress=False)


def test_win_rates_count_ties_as_half():
    rates = win_rate(Length(), ["q"] * 3, ["aa", "a", "a"], ["a", "aa", "b"], progress=False)
    assert rates.tolist() == [1, 0, 0.5]
    assert isinstance(Length(), Judge)


def test_a_preference_that_is_no_chance_is_not_kept():
    judge, ledger = Prefers(), Ledger(3)
    metered, judge.prefer = Metered(judge, ledger), lambda *texts: 7.0
    with pytest.raises(ValueError, match="a preference of 7.0 is no chance"):
        metered.prefer("q", "a", "b")
    judge.prefer = lambda *texts: 1
    assert metered.prefer("q", "a", "b") == 1
    assert ledger.spent == 2


def test_win_rates_name_the_judge_that_fails_and_its_prompt():
    judge = Prefers()
    for prefer, message in ((lambda *texts: 2, "preference of 2.0 is no chance"), (lambda *texts: 1 / 0, "by zero")):
        judge.prefer = prefer
        with pytest.raises(JudgeFailed, match=f"Prefers failed on the prompt 'q'.*{message}"):
            win_rate(judge, ["q"], ["a"], ["b"], progress=False)


def test_a_judge_by_inheritance_may_only_compare():
    class Longer(Judge):
        def prefer(self, prompt, a, b):
            return float(len(a) > len(b))

    assert score_all(Longer(), ["x"], [["a", "ccc", "bb"]], progress=False).tolist() == [[0, 1, 0.5]]


def test_a_recorded_text_may_hold_any_line_separator(tmp_path):
    odd = "one\u2028two\x85three"
    (tmp_path / "labels.jsonl").write_text(
        json.dumps({"prompt": "x", "response": odd, "score": 3}, ensure_ascii=False) + "\n", encoding="utf8"
    )
    assert RecordedJudge(tmp_path / "labels.jsonl").score("x", [odd]) == [3]
