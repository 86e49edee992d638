"""The chat annotator: prompts, pools, failures set aside, and a corpus under a server that misbehaves and kill -9."""

import multiprocessing
import signal
import time
from collections import Counter
from random import Random

import pytest

from lib import TenfoldError
from lib.core.chat import ChatClient, ChatFailed, Decoding, Reply
from lib.core.store import Journal
from lib.usergpt import ChatAnnotator, DemonstrationPool, FreeForm, Guide, load_demonstrations, load_taxonomy
from lib.usergpt.annotation import Annotation, Annotator, annotate_corpus, read_annotations, read_rows
from lib.usergpt.chat_annotator import ChatModel, build_prompt
from lib.usergpt.conversations import Conversation
from lib.usergpt.pool import Demonstration

PEOPLE = [Conversation(str(i), str(i), (f"request {i}, mail me at p{i}@mail.org",)) for i in range(7)]


def output(number, domain="law", summary="s", tasks="advice, legal advice"):
    return f"** Output {number} **\n[domain] {domain}\n[summary] {summary}\n[task type] {tasks}\n"


def asked_of(prompt):
    return prompt.rsplit("in the same format.", 1)[1].count("** Input")


def good(prompt):
    return "".join(output(i + 1) for i in range(asked_of(prompt)))


class Scripted:
    """A chat model whose answers are given; it keeps what it was asked."""

    model = "scripted"

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def complete_many(self, questions, decoding=None, *, attempt=0):
        self.asked += questions
        replies = [self.answer(question, attempt) for question in questions]
        return [Reply((reply,)) if isinstance(reply, str) else reply for reply in replies]


def pool(**options):
    return DemonstrationPool(load_demonstrations(), **options)


def annotator_of(model, *, rule="fixed", **options):
    return ChatAnnotator(model, FreeForm(pool(rule=rule)), **options)


# --- prompts and failures ------------------------------------------------------------------------------------------


def test_every_conversation_gets_its_labels_three_a_call_and_masked():
    model = Scripted(lambda prompt, attempt: good(prompt))
    annotator = annotator_of(model)
    assert isinstance(model, ChatModel)
    assert isinstance(annotator, Annotator)
    found = list(annotator.annotate(PEOPLE))
    assert [a.id for a in found] == [c.id for c in PEOPLE]
    assert {a.tasks for a in found} == {("advice", "legal advice")}
    assert len(model.asked) == 3
    assert "@mail.org" not in "".join(model.asked)
    assert any("[e-mail]" in question for question in model.asked)


def test_the_prompt_shows_k_demonstrations_before_the_requests():
    prompt = build_prompt(["first", "second"], load_demonstrations()[:3])
    head, tail = prompt.split("Now label the following inputs in the same format.")
    assert (head.count("** Input"), head.count("** Output"), tail.count("** Input")) == (3, 3, 2)
    assert head.index("** Input 3 **") < head.index("** Output 1 **")
    assert head.count("[task type]") == 3
    assert "** Input 2 **\nsecond\n\nWrite the outputs for these 2 inputs" in tail


def test_a_prompt_hangs_on_its_requests_and_its_pool_alone():
    form, other = FreeForm(pool()), FreeForm(pool())
    other.messages(["something before"])
    assert form.messages(["a", "b"]) == other.messages(["a", "b"])
    assert form.messages(["a", "b"]) != form.messages(["a", "c"]).replace("\nc", "\nb")  # other demonstrations
    other.pool.demonstrations.append(Demonstration("new", "d", "s", ("t",)))
    assert len({other.messages([str(i)]) == form.messages([str(i)]) for i in range(9)}) == 2


def test_failures_are_asked_again_alone_at_the_end_then_kept_with_their_fault():
    def half(prompt, attempt):
        if "request 4" in prompt:
            return ChatFailed("u", "400 Bad Request", status=400) if asked_of(prompt) > 1 else output(1)
        return good(prompt) if "request 1," not in prompt else output(1) if attempt < 1 else "nonsense"

    model = Scripted(half)
    found = list(annotator_of(model, attempts=2).annotate(PEOPLE))
    assert [a.fault for a in found] == ["", "no [domain]", "", "", "", "", ""]
    assert [asked_of(question) for question in model.asked[3:]] == [1] * 6  # five aside, then the one left
    assert len(model.asked) == 9


def test_structured_output_is_asked_for_by_a_schema_of_the_form():
    seen = []

    class Client(Scripted):
        def complete_many(self, questions, decoding=None, *, attempt=0):
            seen.append(decoding)
            return super().complete_many(questions, decoding, attempt=attempt)

    client = Client(lambda prompt, attempt: '{"task": "code generation", "domain": "law"}')
    annotator = ChatAnnotator(client, Guide(load_taxonomy()), structured=True, decoding=Decoding(max_tokens=9))
    assert next(iter(annotator.annotate(PEOPLE[:1]))).tasks == ("GEN",)
    asked = seen[0].request()["response_format"]["json_schema"]["schema"]
    assert (asked["required"], asked["properties"]["domain"]["enum"][-2:]) == (
        ["task", "domain"], ["sports", "other or unclear"],
    )  # fmt: skip
    assert seen[0].max_tokens == 9
    three = FreeForm(pool()).schema(3)["properties"]["outputs"]
    assert (three["minItems"], three["maxItems"]) == (3, 3)


# --- pools -----------------------------------------------------------------------------------------------------------


def labels(*tasks):
    return [Annotation(str(i), "d", (task,), "s") for i, task in enumerate(tasks)]


def test_the_published_rule_lets_a_type_in_on_its_repeat_at_three_times_lambda():
    growing = pool(rule="published", share=0.1)
    assert growing.grow(labels("knitting", "a", "b"), ["x", "y", "z"]) == 0  # seen for the first time
    assert growing.grow(labels("knitting", "c", "knitting"), ["x", "y", "z"]) == 1  # 1 >= 3 · 0.1 · 3 before the call
    assert growing.demonstrations[-1] == Demonstration("x", "d", "s", ("knitting",))
    for _ in range(2):
        assert growing.grow(labels("d", "e", "f"), ["x"] * 3) == 3 * (_ == 1) * 0
    assert growing.counts["d"] == 2  # 1 < 3 · 0.1 · 9: the threshold is three times λ
    assert pool(rule="published").grow(labels("new", "new", "other"), ["x", "y", "z"]) == 1  # 0 in the first call


def test_the_stated_rule_waits_for_more_than_lambda():
    growing = pool(rule="stated", share=0.5)
    assert growing.grow(labels("knitting", "a", "b"), ["x"] * 3) == 0  # 1 > 1.5 fails
    assert growing.grow(labels("knitting", "knitting", "knitting"), ["x", "y", "z"]) == 1  # 4 > 3; the first one only
    assert growing.demonstrations[-1] == Demonstration("x", "d", "s", ("knitting",))
    assert growing.grow(labels("knitting", "knitting", "knitting"), ["x"] * 3) == 0  # represented by now


def test_a_fixed_pool_stays_and_a_state_brings_a_pool_back():
    fixed = pool(rule="fixed")
    before = list(fixed.demonstrations)
    assert fixed.grow(labels("p", "p", "p"), ["x"] * 3) == 0
    assert fixed.demonstrations == before
    assert len(fixed.draw(500, Random(0))) == len(before)
    grown, again = pool(), pool()
    grown.grow(labels("p", "p", "q"), ["x"] * 3)
    again.restore(grown.state())
    assert (again.demonstrations, again.counts, again.seen) == (grown.demonstrations, grown.counts, 3)


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        ([], {}, "at least one"),
        (None, {"share": 0.0}, "λ = 0.0 is no share"),
        (None, {"rule": "grow"}, "'grow' is unknown"),
    ],
)
def test_bad_pools_are_refused(start, options, message):
    with pytest.raises(ValueError, match=message):
        DemonstrationPool(load_demonstrations() if start is None else start, **options)


def test_broken_demonstrations_are_one_sentence(tmp_path):
    path = tmp_path / "d.toml"
    path.write_text('[[demonstrations]]\nrequest = "r"\n')
    with pytest.raises(TenfoldError, match=r"d\.toml holds no demonstrations"):
        load_demonstrations(path)


# --- one folder, one annotator ---------------------------------------------------------------------------------------


def knitting(prompt, attempt):
    """Labels of a type that no demonstration has; of the first three requests only when they are asked anew."""
    asked = prompt.rsplit("in the same format.", 1)[-1]
    if "request 1," in asked and attempt < 1:
        return "nonsense"
    return "".join(output(i + 1, tasks="knitting") for i in range(asked.count("** Input")))


def test_the_same_annotator_goes_on_in_its_folder_with_the_pool_as_it_had_grown(tmp_path):
    annotator = annotator_of(Scripted(knitting), rule="published")
    first = annotate_corpus(PEOPLE, annotator, tmp_path, part_size=3)
    grown = annotator.state()
    assert (first.annotated, first.faults) == (7, {})
    assert (annotator.pool.seen, annotator.pool.counts["knitting"]) == (7, 4)  # the first part was set aside
    again = annotate_corpus(PEOPLE, annotator, tmp_path, part_size=3)
    assert (again.annotated, again.done_before, annotator.state()) == (0, 7, grown)


def test_an_interrupted_annotator_goes_on_in_its_folder(tmp_path):
    def interrupted(prompt, attempt):
        if "request 6" in prompt:
            raise KeyboardInterrupt
        return knitting(prompt, attempt)

    form = FreeForm(pool(rule="published"), k=99)  # all of a pool are shown, so that every growth is seen
    annotator = ChatAnnotator(Scripted(interrupted), form)
    with pytest.raises(KeyboardInterrupt):
        annotate_corpus(PEOPLE, annotator, tmp_path, part_size=3)
    assert len(form.pool.demonstrations) > len(load_demonstrations())
    annotator.model.answer = knitting
    done = annotate_corpus(PEOPLE, annotator, tmp_path, part_size=3)
    assert (done.annotated, done.done_before) == (1, 6)


class Plain:
    """An annotator without settings."""

    def annotate(self, conversations):
        yield from (Annotation(c.id, "law") for c in conversations)


class Cold(Scripted):
    decoding = Decoding(temperature=0)


OTHERS = {
    "no settings": Plain,
    "form": lambda: ChatAnnotator(Scripted(lambda prompt, attempt: "advice, law"), Guide(load_taxonomy())),
    "model's settings": lambda: annotator_of(Cold(knitting)),
    "settings": lambda: annotator_of(Scripted(knitting), decoding=Decoding(temperature=0)),
    "structure": lambda: annotator_of(Scripted(knitting), structured=True),
    "rule": lambda: annotator_of(Scripted(knitting), rule="stated"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_an_annotator_of_another_kind_is_refused_in_the_folder_of_the_first(other, tmp_path):
    annotate_corpus(PEOPLE, annotator_of(Scripted(knitting)), tmp_path / "a")
    with pytest.raises(TenfoldError, match="labels of another model or form, or of other settings"):
        annotate_corpus(PEOPLE, OTHERS[other](), tmp_path / "a")
    annotate_corpus(PEOPLE, OTHERS[other](), tmp_path / "b")
    with pytest.raises(TenfoldError, match="another model or form"):
        annotate_corpus(PEOPLE, annotator_of(Scripted(knitting)), tmp_path / "b")


# --- a corpus, a server that misbehaves, and kill -9 ---------------------------------------------------------------


class Paying:
    """What a stub server does: it answers late and badly at times, and bills each completion once for its key.

    To a key that it has billed it gives the same completion again, and never a worse answer.
    """

    def __init__(self, server, *, seconds=0.0, bad=0.3):
        self.server, self.seconds, self.bad, self.random = server, seconds, bad, Random(0)
        self.paid = Counter()  # by prompt and Idempotency-Key
        server.answer = self

    def __call__(self, request):
        prompt, number = request["messages"][-1]["content"], self.random.random()
        billed = prompt, self.server.headers[-1]["Idempotency-Key"]
        if number < self.bad and billed not in self.paid:
            return [
                (429, {"Retry-After": "0"}), 529, 400, self.server.wire(b"HTTP/1.1 2"), b"<html>garbage",
                self.server.wire(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"choices\": [{"),
                {"choices": []}, "I cannot label that.",
            ][self.random.randrange(8)]  # fmt: skip
        self.paid[billed] += 1
        return self.server.delay(self.seconds * (10 if number > 0.98 else 1), good(prompt))


def client_of(server, folder, **options):
    options = {"tries": 5, "pause": 0.01, "seconds": 20, "concurrency": 8} | options
    return ChatClient(model="m", url=server.url, journal=Journal(folder / "replies.sqlite"), **options)


def people(count):
    return [Conversation(f"c{i}", f"t{i // 2}", (f"request {i}, mail p{i}@mail.org",)) for i in range(count)]


def annotate(server, folder, count, **options):
    annotator = annotator_of(client_of(server, folder, **options), rule="published", characters=200)
    return annotate_corpus(people(count), annotator, folder, part_size=60)


def started(*work):
    process = multiprocessing.get_context("fork").Process(target=annotate, args=work)
    process.start()
    return process


def killed(process):
    """Whether the process was still at work when it was killed."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_nothing_is_lost_and_nothing_paid_twice_by_two_processes_and_twenty_kills(chat_server, tmp_path):
    stub, random = Paying(chat_server, seconds=0.03), Random(1)
    kills = 0
    while kills < 20:
        pair = [started(chat_server, tmp_path, 360) for _ in range(2)]
        served = len(chat_server.questions)
        while len(chat_server.questions) == served and all(process.is_alive() for process in pair):
            time.sleep(0.005)  # a busy machine takes its time to begin: the moments are moments of work
        pair[0].join(0.15 * random.random())
        kills += sum(killed(process) for process in pair)
        if (tmp_path / "replies.sqlite").exists() and len(Journal(tmp_path / "replies.sqlite")) > 70:
            stub.seconds = 0.2  # so that there is work left to be killed at
    stub.seconds, stub.bad = 0.0, 0.0
    assert stub.paid
    done = annotate(chat_server, tmp_path, 360)
    found = list(read_annotations(tmp_path))
    assert [a.id for a in found] == [c.id for c in people(360)]
    assert not done.faults
    assert all(a.tasks == ("advice", "legal advice") for a in found)
    by_prompt = Counter(prompt for prompt, _ in stub.paid)
    assert (
        max(by_prompt.values()) == 1
    )  # one key a prompt: a server that knows its key bills it once, also after a crash
    kept = {row["texts"][0] for row in Journal(tmp_path / "replies.sqlite").values()}
    assert kept
    answered = len(stub.paid)
    annotate(chat_server, tmp_path, 360)
    assert len(stub.paid) == answered
    assert not any("@mail.org" in question for question in chat_server.questions)
    assert not any("@mail.org" in str(row) for row in read_rows(tmp_path))


@pytest.mark.alone
def test_eight_at_once_are_at_least_six_times_as_fast(chat_server, tmp_path):
    """Of three tries, since another process that comes in between only slows one of them down."""
    Paying(chat_server, seconds=2.0, bad=0.0)  # as a model takes
    ratios = []
    while len(ratios) < 3 and max(ratios, default=0) < 6:
        seconds = {}
        for concurrency, count in ((1, 6), (8, 72)):
            folder = tmp_path / f"{len(ratios)} {concurrency}"
            annotator = annotator_of(client_of(chat_server, folder, concurrency=concurrency))
            began = time.perf_counter()
            assert not annotate_corpus(people(count), annotator, folder, part_size=72).faults
            seconds[concurrency] = (time.perf_counter() - began) / count
        ratios.append(seconds[1] / seconds[8])
    assert max(ratios) >= 6, ratios


def test_what_failed_is_asked_again_when_the_corpus_is_through_with_the_pool_of_its_part(chat_server, tmp_path):
    broken, seen = {"request 1,": 400, "request 65,": 503}, []

    def answer(request):
        prompt = request["messages"][-1]["content"]
        seen.append(prompt)
        wrong = [status for name, status in broken.items() if name in prompt.rsplit("same format.", 1)[1]]
        return wrong[0] if wrong else good(prompt)

    chat_server.answer = answer
    done = annotate(chat_server, tmp_path, 130, tries=1)
    assert done.faults == {"400 Bad Request": 1, "503 Service Unavailable": 1}  # their neighbours were asked alone
    broken.clear()
    count = len(seen)
    done = annotate(chat_server, tmp_path, 130, tries=1)
    assert (done.annotated, done.done_before, done.faults) == (0, 130, {})
    assert [asked_of(prompt) for prompt in seen[count:]] == [1, 1]
    with pytest.raises(TenfoldError, match="labels of another model or form"):
        annotate_corpus(people(130), ChatAnnotator(client_of(chat_server, tmp_path), Guide(load_taxonomy())), tmp_path)
    chat_server.script = [401] * 50
    with pytest.raises(TenfoldError, match="401"):
        annotate(chat_server, tmp_path / "new", 30)
