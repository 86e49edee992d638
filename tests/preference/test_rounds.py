"""The online loop: what it does in a round, and that nothing is lost or done twice when it breaks."""

import json
from dataclasses import replace

import pytest
import torch

from lib import TenfoldError, selm
from lib.preference import (
    BudgetExceeded,
    JudgeFailed,
    Ledger,
    Metered,
    Question,
    Sampling,
    config,
    load_policy,
    online,
    train,
    with_lora,
)
from lib.zoo.dialogues import prompt_ids

PROMPTS = [f"say {i}" for i in range(6)]
SAMPLING = Sampling(k=3, max_new_tokens=4, seed=1)


class Commas:
    """Counts a letter; remembers whom it was asked about, and can be made to fail."""

    def __init__(self, fails_at=None):
        self.asked, self.fails_at = [], fails_at

    def score(self, prompt, responses):
        if self.fails_at == len(self.asked):
            raise RuntimeError("out of order")
        self.asked.append(prompt)
        return [sum(map(ord, r)) % 101 / 7 for r in responses]

    def prefer(self, prompt, a, b):
        return 0.5


@pytest.fixture
def run(tiny_policy, tokenizer, tmp_path):
    policy = with_lora(tiny_policy, layers=1, rank=2)
    trained = []

    def trainer(policy, data, number, folder):
        trained.append(number)
        args = config(folder, learning_rate=1e-2, per_device_train_batch_size=3, max_steps=2)
        return train(policy, tokenizer, data, args, progress=False)

    def go(judge, rounds=2, sampling=SAMPLING, prompts=PROMPTS, folder="run", policy=policy, **options):
        options = {"train": trainer, "progress": False, **options}
        return online(
            policy, tokenizer, prompts, rounds, judge=judge, folder=tmp_path / folder, sampling=sampling, **options
        )

    go.trained, go.policy, go.folder = trained, policy, tmp_path / "run"
    return go


def logits(policy):
    with torch.no_grad():
        return policy(torch.tensor([[5, 6, 7]])).logits


def test_rounds_take_equal_portions_and_start_from_what_the_last_one_left(run):
    rounds = run(Commas())
    assert [[g.prompt for g in r.groups] for r in rounds] == [PROMPTS[:3], PROMPTS[3:]]
    assert all(len(g.responses) == len(g.scores) == 3 for r in rounds for g in r.groups)
    assert run.trained == [1, 2]
    # the reference was reset: the first loss of each round is log 2
    assert [r.history[0]["loss"] for r in rounds] == pytest.approx([0.6931, 0.6931], abs=1e-3)
    assert rounds[0].counts.pairs + rounds[0].counts.ties == 3


def test_finished_rounds_are_read_not_done_again(run):
    first = run(Commas())
    after = logits(run.policy)
    for p in run.policy.parameters():
        if p.requires_grad:
            p.data.zero_()
    judge = Commas()
    again = run(judge)
    assert judge.asked == []
    assert len(run.trained) == 2
    assert again == first
    assert torch.equal(logits(run.policy), after)


def test_a_judge_that_fails_keeps_what_it_had_said_and_the_finished_round(run):
    with pytest.raises(JudgeFailed, match=r"2 of 3 could not be judged.*out of order"):
        run(Commas(fails_at=4))  # from the second prompt of round 2 on
    judge = Commas()
    rounds = run(judge)
    assert judge.asked == PROMPTS[4:]  # the failed prompt and the one after it
    interrupted = logits(run.policy)
    load_policy(run.policy, run.folder / "round-0")
    whole = run(Commas(), folder="elsewhere")
    assert [r.groups for r in whole] == [r.groups for r in rounds]
    assert torch.equal(logits(run.policy), interrupted)


def test_a_training_that_broke_is_begun_again_from_where_the_round_began(run):
    def breaks(policy, data, number, folder):
        for p in policy.parameters():
            p.data += p.requires_grad
        raise KeyboardInterrupt

    whole = run(Commas(), rounds=1)
    load_policy(run.policy, run.folder / "round-0")
    with pytest.raises(KeyboardInterrupt):
        run(Commas(), rounds=1, folder="elsewhere", train=breaks)
    judge = Commas()
    again = run(judge, rounds=1, folder="elsewhere")
    assert judge.asked == []  # samples and scores were there
    assert again[0].history[0]["loss"] == pytest.approx(whole[0].history[0]["loss"], abs=1e-3)


def test_a_budget_holds_over_rounds_and_resumes(run, tmp_path):
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(BudgetExceeded, match="3 calls were asked for, but 1 of 10 are left"):
        run(Metered(Commas(), Ledger(10, path)))
    assert Ledger(10, path).spent == 9
    run(Metered(Commas(), Ledger(18, path)))
    assert Ledger(18, path).spent == 18  # nothing was paid twice
    with pytest.raises(BudgetExceeded, match="but 1 of 1 are left"):
        run(Metered(Commas(), Ledger(1)), folder="poor")


def test_the_greedy_response_is_a_candidate_and_extra_columns_arrive(run):
    columns = []

    def trainer(policy, data, number, folder):
        columns.append(data.column_names)
        return []

    options = {"sampling": Sampling(k=2, greedy=True, max_new_tokens=4), "train": trainer}
    (done,) = run(Commas(), rounds=1, extra=lambda g: {"greedy_ids": list(g.responses[g.greedy].tokens)}, **options)
    assert all(g.greedy == 2 and len(g.responses) == 3 for g in done.groups)
    assert "greedy_ids" in columns[0]


def test_what_cannot_be_judged_may_be_left_out(run):
    class Refuses(Commas):
        def score(self, prompt, responses):
            if prompt == PROMPTS[1]:
                raise RuntimeError("cannot be read")
            return super().score(prompt, responses)

    first, second = run(Refuses(), unjudged=0.4)
    assert (first.counts.unjudged, second.counts.unjudged) == (1, 0)
    assert [g.prompt for g in first.groups] == [PROMPTS[0], PROMPTS[2]]


def test_algorithm_1_ranks_y_with_the_responses_of_the_data_set(run, tokenizer):
    asked = [Question(p, "", tuple(prompt_ids(tokenizer, p)), (f"good {i}", f"bad {i}")) for i, p in enumerate(PROMPTS)]
    judge, columns = Prefers(), []

    def trainer(policy, data, number, folder):
        columns.append(data)
        return []

    sampling = Sampling(k=1, max_new_tokens=4, seed=1)
    rounds = run(judge, prompts=asked, sampling=sampling, train=trainer, extra=selm.third_response)
    groups = [g for r in rounds for g in r.groups]
    assert [[r.text for r in g.responses[1:]] for g in groups] == [list(q.existing) for q in asked]
    assert all(g.responses[1].tokens[-1] == tokenizer.eos_token_id for g in groups)
    assert len(judge.asked) == 3 * len(PROMPTS)  # each against each: a judge that only compares drives the loop
    for data, part in zip(columns, rounds, strict=True):
        assert [row["sampled_ids"] for row in data] == [list(g.responses[0].tokens) for g in part.groups]
        for row, group in zip(data, part.groups, strict=True):
            best = max(group.responses, key=lambda r: len(r.text))
            assert row["chosen_ids"] == list(best.tokens)
    with pytest.raises(ValueError, match="give existing ones"):
        run(judge, sampling=sampling, folder="other")
    with pytest.raises(TenfoldError, match=r"other settings \(judge, prompts\)"):
        run(Commas(), prompts=[replace(q, existing=("x", "y")) for q in asked], sampling=sampling)


class Prefers:
    """Only compares: the longer text is better."""

    identity = "length"

    def __init__(self):
        self.asked = []

    def prefer(self, prompt, a, b):
        self.asked.append((a, b))
        return 0.5 if len(a) == len(b) else float(len(a) > len(b))


@pytest.mark.parametrize(
    ("seed", "settings"), [(1, {}), (0, {"layers": 2}), (0, {"rank": 3}), (0, {"alpha": 8})], ids=str
)
def test_another_policy_does_not_go_on_where_one_began(run, tiny, tokenizer, seed, settings):
    def other(seed, **settings):
        model = tiny(len(tokenizer), seed=seed, scale=0.05)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        return with_lora(model, **({"layers": 1, "rank": 2} | settings))

    first = run(Commas(), rounds=1)
    with pytest.raises(TenfoldError, match=r"was begun with other settings \(policy\)"):
        run(Commas(), rounds=1, policy=other(seed, **settings))
    assert run(Commas(), rounds=1, policy=other(0)) == first  # the same one, loaded anew


def test_a_folder_that_an_earlier_version_began_is_gone_on_with(run):
    first, path = run(Commas(), rounds=1), run.folder / "settings.json"
    settings = json.loads(path.read_text())
    del settings["policy"]
    path.write_text(json.dumps(settings))
    assert run(Commas(), rounds=1) == first


def test_bad_loops(run):
    with pytest.raises(ValueError, match="6 prompts cannot be split over 7"):
        run(Commas(), rounds=7)
    with pytest.raises(ValueError, match="k of at least 2"):
        run(Commas(), sampling=Sampling(k=1))
    run(Commas(), rounds=1)
    with pytest.raises(TenfoldError, match=r"other settings \(k\)"):
        run(Commas(), rounds=1, sampling=Sampling(k=2, max_new_tokens=4, seed=1))
    assert json.loads((run.folder / "settings.json").read_text())["k"] == 3
