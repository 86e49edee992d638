from random import Random

import pytest
import torch

from lib import TenfoldError, zoo
from lib.core.chat import ChatClient, ChatFailed, Decoding, Reply
from lib.core.store import Journal, key_of
from lib.usergpt.annotation import Annotation, Annotator
from lib.usergpt.chat_annotator import (
    ChatAnnotator,
    Demonstration,
    DemonstrationPool,
    build_prompt,
    in_lockstep,
    load_demonstrations,
    parse_reply,
)
from lib.usergpt.chat_models import ChatModel, LocalChatModel, OwnDraws
from lib.usergpt.conversations import Conversation
from lib.usergpt.privacy import mask
from lib.usergpt.study.comparison import failed

PEOPLE = [Conversation(str(i), str(i), (f"request {i}, mail me at p{i}@mail.org",)) for i in range(7)]


def output(number, domain="law", summary="s", tasks="advice, legal advice"):
    return f"** Output {number} **\n[domain] {domain}\n[summary] {summary}\n[task type] {tasks}\n"


def said(text):
    return Reply((text,))


class Scripted:
    """A chat model whose answers are given; it keeps what it was asked."""

    model = "scripted"

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def complete_many(self, questions, decoding=None, *, attempt=0):
        self.asked += questions
        return [self.answer(question, attempt) for question in questions]


def pool(**options):
    return DemonstrationPool(load_demonstrations(), **options)


def good(prompt, attempt):
    asked = prompt.rsplit("in the same format.", 1)[1].count("** Input")
    return said("".join(output(i + 1) for i in range(asked)))


def test_every_conversation_gets_its_labels_three_a_call_and_masked():
    model = Scripted(good)
    annotator = ChatAnnotator(model, pool(rule="fixed"))
    assert isinstance(model, ChatModel)
    assert isinstance(annotator, Annotator)
    found = list(annotator.annotate(PEOPLE))
    assert [a.id for a in found] == [c.id for c in PEOPLE]
    assert {a.tasks for a in found} == {("advice", "legal advice")}
    assert len(model.asked) == annotator.calls == 3
    assert "@mail.org" not in "".join(model.asked)
    assert "[e-mail]" in model.asked[0]


def test_the_prompt_shows_k_demonstrations_before_the_requests():
    prompt = build_prompt(["first", "second"], load_demonstrations()[:3])
    head, tail = prompt.split("Now label the following inputs in the same format.")
    assert (head.count("** Input"), head.count("** Output"), tail.count("** Input")) == (3, 3, 2)
    assert head.index("** Input 3 **") < head.index("** Output 1 **")
    assert head.count("[task type]") == 3
    assert tail.endswith("** Input 2 **\nsecond")


@pytest.mark.parametrize(
    ("reply", "faults"),
    [
        (output(1) + output(2), ["", ""]),
        ("Sure!\n\n" + output(2) + "\n\n" + output(1), ["", ""]),
        (output(1), ["", "no output"]),
        (output(1) + output(2, tasks=" "), ["", "no [task type]"]),
        (output(1) + output(2).replace("[domain] law\n", ""), ["", "no [domain]"]),
        (output(1) + output(2) + output(2), ["", "more than one output"]),
        (output(1) + output(2) + "[summary] again", ["", "more than one [summary]"]),
        ("I cannot help with that.", ["no output", "no output"]),
        ("", ["no output", "no output"]),
    ],
)
def test_a_reply_is_read_strictly_and_a_broken_block_costs_its_own_conversation(reply, faults):
    found = parse_reply(reply, ["a", "b"])
    assert [a.fault for a in found] == faults
    assert all(bool(a.tasks) != bool(a.fault) for a in found)


def test_labels_are_brought_to_one_form():
    (found,) = parse_reply(output(1, domain="Law.", tasks="Advice;  legal   Advice, advice/“x”"), ["a"])
    assert (found.domain, found.tasks[:2]) == ("law", ("advice", "legal advice"))


def test_failures_are_asked_again_then_kept_and_counted():
    def half(prompt, attempt):
        return said(output(1)) if attempt else said("nonsense")

    model = Scripted(half)
    annotator = ChatAnnotator(model, pool(rule="fixed"), attempts=3)
    found = list(annotator.annotate(PEOPLE[:3]))
    assert [a.fault for a in found] == ["", "no output", "no output"]
    assert annotator.faults == {"no output": 2}
    assert annotator.calls == 3


def test_what_one_attempt_gave_another_does_not_take_away():
    model = Scripted(lambda prompt, attempt: said([output(1), output(2), output(3)][attempt]))
    found = list(ChatAnnotator(model, pool(rule="fixed"), attempts=3).annotate(PEOPLE[:3]))
    assert [a.fault for a in found] == ["", "", ""]


def test_an_interrupted_run_goes_on_from_its_cache(tmp_path):
    path = tmp_path / "replies.sqlite"
    whole = list(ChatAnnotator(Scripted(good), pool(), seed=1).annotate(PEOPLE))

    def killed(prompt, attempt):
        if killed.left == 0:
            raise KeyboardInterrupt
        killed.left -= 1
        return good(prompt, attempt)

    killed.left = 2
    with pytest.raises(KeyboardInterrupt):
        list(ChatAnnotator(Scripted(killed), pool(), seed=1, journal=Journal(path)).annotate(PEOPLE))
    model = Scripted(good)
    again = list(ChatAnnotator(model, pool(), seed=1, journal=Journal(path)).annotate(PEOPLE))
    assert again == whole
    assert len(model.asked) == 1
    assert len(Journal(path)) == 3
    assert "mail.org" not in str(Journal(path).values())


def test_annotators_in_lockstep_are_as_alone():
    jobs = [(ChatAnnotator(Scripted(good), pool(), seed=s), PEOPLE[: 3 + 2 * s]) for s in range(3)]
    alone = [list(ChatAnnotator(Scripted(good), pool(), seed=s).annotate(PEOPLE[: 3 + 2 * s])) for s in range(3)]
    model = Scripted(good)
    assert in_lockstep(jobs, model) == alone


def labels(*tasks):
    return [Annotation(str(i), "d", (task,), "s") for i, task in enumerate(tasks)]


def test_the_stated_rule_waits_for_more_than_lambda():
    growing = pool(rule="stated", share=0.5)
    assert growing.grow(labels("knitting", "a", "b"), ["x"] * 3) == 0  # 1 > 1.5 fails
    assert growing.grow(labels("knitting", "knitting", "knitting"), ["x", "y", "z"]) == 1  # 4 > 3; the first one only
    assert growing.demonstrations[-1] == Demonstration("x", "d", "s", ("knitting",))
    assert growing.grow(labels("knitting", "knitting", "knitting"), ["x"] * 3) == 0  # represented by now


def test_the_published_rule_has_three_times_the_threshold_and_none_at_first():
    published = pool(rule="published", share=0.05)
    assert published.grow(labels("p", "q", "r"), ["x"] * 3) == 3  # threshold 0: whatever is new enters
    stated = pool(rule="stated", share=0.05)
    assert stated.grow(labels("p", "q", "r"), ["x"] * 3) == 3  # 1 > 0.15
    for calls in range(2, 20):
        published.grow(labels("debugging", "debugging", "debugging"), ["x"] * 3)
        stated.grow(labels("debugging", "debugging", "debugging"), ["x"] * 3)
        before, after = 3 * (calls - 1), 3 * calls
        assert published.threshold(3) == pytest.approx(0.15 * before)
        assert stated.threshold(3) == pytest.approx(0.05 * after)


def test_a_fixed_pool_stays():
    fixed = pool(rule="fixed")
    before = list(fixed.demonstrations)
    assert fixed.grow(labels("p", "q", "r"), ["x"] * 3) == 0
    assert fixed.demonstrations == before
    assert len(fixed.draw(5, Random(0))) == 5
    assert len(fixed.draw(500, Random(0))) == len(before)


@pytest.mark.parametrize(
    ("start", "share", "message"), [([], 0.05, "at least one"), (None, 0.0, "λ = 0.0 is no share")]
)
def test_bad_pools_are_refused(start, share, message):
    with pytest.raises(ValueError, match=message):
        DemonstrationPool(load_demonstrations() if start is None else start, share=share)


def test_broken_demonstrations_are_one_sentence(tmp_path):
    path = tmp_path / "d.toml"
    path.write_text('[[demonstrations]]\nrequest = "r"\n')
    with pytest.raises(TenfoldError, match=r"d\.toml holds no demonstrations"):
        load_demonstrations(path)


def test_an_endpoint_is_asked_masked_and_what_fails_costs_its_own_call_only(chat_server, tmp_path):
    decoding = Decoding(temperature=0.4, max_tokens=800)
    journal = Journal(tmp_path / "replies.sqlite")
    client = ChatClient(
        model="m", url=chat_server.url, decoding=decoding, journal=journal, clean=mask, tries=1, concurrency=1
    )
    assert isinstance(client, ChatModel)
    chat_server.script = [503, output(1, summary="mail p4@mail.org") + output(2) + output(3), output(1)]
    annotator = ChatAnnotator(client, pool(rule="fixed"), attempts=1)
    found = list(annotator.annotate(PEOPLE))
    assert [a.fault for a in found] == ["503 Service Unavailable"] * 3 + [""] * 4
    assert found[3].summary == "mail [e-mail]"
    assert "@mail.org" not in "".join(chat_server.questions)
    assert not any("@mail.org" in str(row) for row in journal.values())
    chat_server.script = [401]
    with pytest.raises(TenfoldError, match="401"):
        list(ChatAnnotator(client, pool(rule="fixed"), attempts=1).annotate(PEOPLE[:3]))


def test_a_local_model_answers_in_batches_the_same_twice_and_refuses_what_does_not_fit():
    lm, tokenizer = zoo.load_lm("smollm2-135m-instruct")
    model = LocalChatModel(lm, tokenizer, max_new_tokens=6, batch_size=2)
    prompts = ["Say hello.", "word " * 9000, "Name a colour."]
    found = model.complete_many(prompts)
    assert found[1].reason.startswith("a prompt of 9")
    assert all(found[i].text.startswith("** Output 1 **\n[domain]") for i in (0, 2))
    assert model.complete_many(prompts[::2]) == found[::2]
    assert model.complete_many(prompts[2:]) == found[2:]  # its own random numbers: no companion of the batch matters
    assert model.complete_many(prompts[2:], attempt=1) != found[2:]


def test_greedy_decoding_with_gumbel_noise_samples_the_models_law():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(4000, 1)
    draws = OwnDraws([key_of(i) for i in range(4000)], 0.5)
    chosen = draws(None, logits).argmax(dim=-1).bincount(minlength=3) / 4000
    torch.testing.assert_close(chosen, torch.softmax(logits[0] / 0.5, dim=-1), atol=0.025, rtol=0)


def test_failures_are_judged_and_what_cannot_be_read_is_no_verdict():
    model = Scripted(lambda prompt, attempt: said(f"answer to {prompt}"))
    verdicts = iter([said("FAIL."), said("pass"), said("PASS or FAIL?"), ChatFailed("u", "time-out")])
    judge = Scripted(lambda prompt, attempt: next(verdicts))
    assert failed(model, judge, ["a", "b", "c", "mail x@y.org"]) == [True, False, None, None]
    assert "Answer:\nanswer to a\n" in judge.asked[0]
    assert "x@y.org" not in "".join(model.asked + judge.asked)
