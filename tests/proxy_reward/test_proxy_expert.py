"""The expert behind its ledger, and the two judges kept apart."""

import pytest
import torch

from lib.preference.judges import ByComparison, JudgeFailed, RecordedJudge, ReferenceJudge, RougeJudge
from lib.preference.ledger import BudgetExceeded, Ledger, Metered
from lib.proxy_reward.active import QueryPool, learning_curve, select
from lib.proxy_reward.evaluators import fit_ridge
from lib.proxy_reward.expert import Expert, SameJudge, final_scores, keep_apart
from lib.proxy_reward.pseudo_labels import pseudo_label

PROMPTS = [f"question {i}" for i in range(12)]
ANSWERS = [f"answer number {i}" for i in range(12)]


class Counting:
    """A judge that counts its calls, and dies or gives NaN at one of them."""

    def __init__(self, dies_at=None, nan_at=None):
        self.calls, self.dies_at, self.nan_at = 0, dies_at, nan_at

    def score(self, prompt, responses):
        found = []
        for response in responses:
            self.calls += 1
            if self.calls == self.dies_at:
                raise KeyboardInterrupt
            found.append(float("nan") if self.calls == self.nan_at else float(len(prompt + response)))
        return found

    def prefer(self, prompt, a, b):
        return 0.5


def test_every_call_is_counted_and_an_answer_is_paid_once():
    judge, ledger = Counting(), Ledger(8)
    expert = Expert(judge, ledger)
    first = expert.scores(PROMPTS[:5], ANSWERS[:5])
    assert ledger.spent == judge.calls == 5
    again = expert.scores(PROMPTS[:6] + PROMPTS[:1], ANSWERS[:6] + ANSWERS[:1])
    assert ledger.spent == judge.calls == 6
    assert again[:5].tolist() == first.tolist()
    assert again[6] == first[0]


def test_a_request_beyond_the_budget_asks_nothing():
    judge, ledger = Counting(), Ledger(4)
    expert = Expert(judge, ledger)
    with pytest.raises(BudgetExceeded, match="5 calls were asked for, but 4 of 4"):
        expert.scores(PROMPTS[:5], ANSWERS[:5])
    assert judge.calls == ledger.spent == 0


def test_an_expert_that_only_compares_says_what_it_is_for():
    class Compares:
        identity = "people"

        def prefer(self, prompt, a, b):
            return 0.75

    expert = Expert(Compares(), Ledger(4))
    with pytest.raises(ValueError, match="use prefer with select_pairs and fit_bradley_terry"):
        expert.scores(PROMPTS[:1], ANSWERS[:1])
    assert expert.prefer("q", "a", "b") == 0.75
    assert expert.ledger.spent == 1


@pytest.mark.parametrize("dies_at", [1, 3, 6])
def test_the_budget_holds_over_a_crash_and_a_resume(tmp_path, dies_at):
    path, budget = tmp_path / "labels.sqlite", 6
    judge = Counting(dies_at=dies_at)
    with pytest.raises(KeyboardInterrupt):
        Expert(judge, Ledger(budget, path)).scores(PROMPTS[:6], ANSWERS[:6])
    made = judge.calls
    assert Ledger(budget, path).spent == dies_at  # the call that crashed is counted
    judge = Counting()
    resumed = Expert(judge, Ledger(budget, path))
    assert len(resumed) == dies_at - 1
    with pytest.raises(BudgetExceeded):  # one call was lost, so the last item cannot be paid
        resumed.scores(PROMPTS[:6], ANSWERS[:6])
    resumed.scores(PROMPTS[:5], ANSWERS[:5])
    made += judge.calls
    assert made <= budget
    assert Ledger(budget, path).spent == made


def test_written_answers_are_recorded_labels(tmp_path):
    expert = Expert(Counting(), Ledger(9))
    expert.scores(PROMPTS[:3], ANSWERS[:3])
    expert.write(tmp_path / "labels.jsonl")
    recorded = RecordedJudge(tmp_path / "labels.jsonl")
    assert recorded.score(PROMPTS[2], [ANSWERS[2]]) == [float(len(PROMPTS[2] + ANSWERS[2]))]


def test_an_invalid_answer_stays_counted_and_all_others_are_kept(tmp_path):
    ledger = Ledger(9, tmp_path / "labels.sqlite")
    expert = Expert(Counting(nan_at=3), ledger)
    with pytest.raises(JudgeFailed, match="one finite number"):
        expert.scores(PROMPTS[:5], ANSWERS[:5])
    assert ledger.spent == 5
    assert len(Expert(Counting(), Ledger(9, tmp_path / "labels.sqlite"))) == 4


@pytest.mark.parametrize("strategy", ["random", "uncertainty", "coreset_ift", "coreset_eft", "badge"])
def test_a_learning_curve_spends_what_its_budgets_say(strategy):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=g)
    ledger = Ledger(20)

    def ask(items):
        ledger.spend(len(items))
        return x[items, 0]

    pool = QueryPool(x, x)
    curve = learning_curve(pool, ask, strategy=strategy, budgets=[5, 9, 20], seed_labels=5, generator=g)
    assert [len(p.labelled.unique()) for p in curve] == [5, 9, 20]
    assert ledger.spent == 20
    with pytest.raises(BudgetExceeded):
        learning_curve(pool, ask, strategy=strategy, budgets=[5], seed_labels=5, generator=g)
    with pytest.raises(ValueError, match="no curve"):
        learning_curve(pool, ask, strategy=strategy, budgets=[9, 5], seed_labels=5, generator=g)


def test_the_labelling_judge_cannot_give_the_final_score():
    references = dict(zip(PROMPTS, ANSWERS, strict=True))
    oracle, rouge = ReferenceJudge(None, references), RougeJudge(references)
    labels = Metered(oracle, Ledger(3))
    with pytest.raises(SameJudge, match="sentence similarity gave the labels"):
        final_scores(oracle, PROMPTS, [[a] for a in ANSWERS], labelled_by=labels, labelled=[])
    with pytest.raises(SameJudge):  # another encoder that is not said to be another, another weight
        keep_apart(labels, ReferenceJudge(object(), references, weight=0.0))
    keep_apart(labels, ReferenceJudge(object(), references, identity="another encoder"))
    with pytest.raises(SameJudge):  # what an expert asks is its judge
        keep_apart(Expert(oracle, Ledger(3)), ByComparison(labels))
    with pytest.raises(SameJudge):
        keep_apart(rouge, RougeJudge(references, words=9))
    with pytest.raises(ValueError, match="Counting does not say what its opinion rests on"):
        keep_apart(Counting(), rouge)
    scores = final_scores(rouge, PROMPTS, [[a] for a in ANSWERS], labelled_by=labels, labelled=["other"])
    torch.testing.assert_close(scores, torch.ones(12, 1, dtype=torch.float64))


def test_final_prompts_are_held_out():
    references = dict(zip(PROMPTS, ANSWERS, strict=True))
    with pytest.raises(SameJudge, match="1 of the final prompts were labelled"):
        final_scores(
            RougeJudge(references), PROMPTS[:2], [["a"], ["b"]],
            labelled_by=ReferenceJudge(None, references), labelled=PROMPTS[1:5],
        )  # fmt: skip


def test_the_readmes_example_spends_its_budget_and_labels_nine_times_more_pairs(tmp_path):
    k, budget, count = 4, 8, 20
    prompts = [f"question {i // k}" for i in range(count * k)]
    responses = [f"{'word ' * (1 + i % k)}{i}" for i in range(count * k)]
    ift = torch.randn(count * k, 6, generator=torch.Generator().manual_seed(0))
    ift[:, 0] = torch.tensor([float(len(r)) for r in responses])
    ledger = Ledger(budget, tmp_path / "labels.sqlite")
    expert = Expert(Counting(), ledger)
    chosen = select(QueryPool(ift), budget, "random", generator=torch.Generator())
    scores = expert.scores([prompts[i] for i in chosen], [responses[i] for i in chosen])
    evaluator = fit_ridge(ift[chosen], scores)
    pairs = pseudo_label(evaluator.score(ift).view(-1, k), direct_pairs=budget // k)
    assert ledger.left == 0
    assert len(pairs) == 9 * budget // k
    assert float((pairs.chosen > pairs.rejected).float().mean()) > 0.9  # the expert likes long responses
