"""Every expert call is counted, budgets hold across crashes, and judges rank what they must."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from lib import TenfoldError, zoo
from lib.preference import (
    BudgetExceeded,
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
    judge = Metered(Length(), ledger, "seed labels")
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
    with pytest.raises(RuntimeError, match="down"):
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


def test_chat_judge_asks_both_orders_and_keeps_ties():
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
    assert lost.prefer("q", "x", "y") == 0.5
    assert lost.score("q", ["x"]) == [5.5]
    assert (lost.asked, lost.unreadable) == (3, 3)
    assert ChatJudge(lambda q: "I would say 8/10").score("q", ["x"]) == [8.0]
    ledger = Ledger(3)
    Metered(judge, ledger).prefer("q", "one", "two")
    assert ledger.spent == 2  # both orders are calls


def test_chat_judge_by_a_local_model(tiny_policy, tokenizer):
    judge = ChatJudge.local(tiny_policy, tokenizer, max_new_tokens=3)
    with pytest.raises(ValueError, match="context of 128"):
        judge.prefer("a question " * 60, "x", "y")
    judge = ChatJudge.local(tiny_policy, tokenizer, max_new_tokens=3)
    assert judge.score("q", ["x", "y"])[0] in {5.5, *range(1, 11)}
    assert judge.asked == 2


def test_chat_judge_by_an_endpoint(chat_server):
    chat_server.script += ["Answer B", "Answer B", 401]
    judge = ChatJudge.endpoint(chat_server.url, "m", key="k")
    assert judge.prefer("q", "x", "y") == 0.5
    assert [(asked["model"], asked["temperature"]) for asked in chat_server.asked] == [("m", 0), ("m", 0)]
    assert chat_server.headers[0]["Authorization"] == "Bearer k"
    with pytest.raises(TenfoldError, match="401"):
        judge.score("q", ["x"])


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
