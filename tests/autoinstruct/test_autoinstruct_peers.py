"""DSPy's COPRO with a scripted language model and with the local one: nothing leaves the process."""

import os
import socket
import sys

import pytest

from lib import TenfoldError
from lib.autoinstruct import Candidate
from lib.autoinstruct.labelling import Pair, label
from lib.autoinstruct.metrics import first_line
from lib.autoinstruct.study import peers
from lib.autoinstruct.tasks import Demonstration

DEMOS = (Demonstration("2 + 2", "4"), Demonstration("3 + 9", "12"))
HUMAN = "Add the numbers."


def test_without_dspy_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dspy", None)
    with pytest.raises(TenfoldError, match="pip install dspy"):
        peers.copro(object(), HUMAN, DEMOS)


@pytest.fixture
def dspy(tmp_path, monkeypatch):
    """The package, with a home of its own and no way out of the process."""
    monkeypatch.setenv("DSPY_CACHEDIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    module = pytest.importorskip("dspy", reason="the peers extra is not installed")

    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield module
    assert not os.listdir(tmp_path), "DSPy left files behind"


class Scripted:
    """An engine that proposes from a list and adds up only where the instruction says so."""

    def __init__(self, proposals):
        self.proposals, self.requests = list(proposals), []

    def complete(self, request):
        from dspy.lm15 import Message, Response, TextPart, Usage

        system = request.system if isinstance(request.system, str) else request.system[0].text
        question = request.messages[-1].parts[0].text
        self.requests.append((system, question, request.config))
        if "instruction optimizer" in system:
            text = self.proposals.pop(0)
        else:
            text = str(sum(map(int, question.split(" + ")))) if "sum" in system else "I do not know"
        message = Message(role="assistant", parts=(TextPart(text + "\nMore words."),))
        return Response(id=None, model="local", message=message, finish_reason="stop", usage=Usage())


def test_copro_takes_the_proposal_that_answers_the_demonstrations(dspy):
    engine = Scripted(["Multiply the numbers.", "Say hello.", "Give the sum.", "Guess."])
    found = peers.copro(engine, HUMAN, DEMOS, breadth=2, depth=2, proposal_tokens=30, answer_tokens=7)
    assert found.text.startswith("Give the sum.")
    assert (found.origin, found.style) == ("dspy", "COPRO")
    asked = [(system, question) for system, question, _ in engine.requests]
    assert all((HUMAN, demo.input) in asked for demo in DEMOS)  # the human instruction is tried, as labels try it
    proposing = [r for r in engine.requests if "instruction optimizer" in r[0]]
    assert f"Basic instruction:\n{HUMAN}\n\nProposed instruction:" in proposing[0][1]
    assert f"Instruction #1: {HUMAN}\n" in proposing[-1][1]  # later rounds see the attempts
    assert {r[2].temperature for r in proposing} == {1.0}
    assert {r[2].max_tokens for r in proposing} == {30}
    assert {r[2].max_tokens for r in engine.requests if r not in proposing} == {7}


def test_the_first_instruction_stays_where_proposals_do_worse(dspy):
    engine = Scripted(["Multiply the numbers."] * 3)
    found = peers.copro(engine, "Give the sum of the numbers.", DEMOS, breadth=2, depth=2)
    assert found == Candidate("Give the sum of the numbers.", "dspy", "COPRO")


def test_an_engine_that_fails_ends_the_search(dspy):
    class Broken(Scripted):
        def complete(self, request):
            raise RuntimeError("out of memory")

    with pytest.raises(Exception, match="out of memory|cancelled"):
        peers.copro(Broken([]), HUMAN, DEMOS)


def test_a_search_needs_demonstrations(dspy):
    with pytest.raises(ValueError, match="at least one"):
        peers.copro(Scripted([]), HUMAN, ())


def test_the_local_engine_answers_as_labels_are_made(dspy, lm):
    from dspy.lm15 import Config, Message, Request

    engine = peers.LocalEngine(*lm, inputs=[demo.input for demo in DEMOS], ahead=2)
    pairs = [Pair(HUMAN, demo.input, (demo.output,)) for demo in DEMOS]
    wanted = [one.output for one in label(*lm, pairs, max_new_tokens=6, progress=False)]

    def ask(question, **config):
        request = Request("local", messages=(Message.user(question),), system=HUMAN, config=Config(**config))
        return engine.complete(request).message.parts[0].text

    answers = [first_line(ask(demo.input, max_tokens=6, temperature=0.0)) for demo in DEMOS]
    assert answers == wanted
    drawn = [ask("Say something.", max_tokens=6, temperature=1.0) for _ in range(3)]
    assert all(drawn)
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2]
    assert engine.requests == 5


def test_copro_runs_with_the_local_model(dspy, lm):
    engine = peers.LocalEngine(*lm, inputs=[demo.input for demo in DEMOS], ahead=1)
    found = peers.copro(engine, HUMAN, DEMOS, breadth=2, depth=1, proposal_tokens=8, answer_tokens=3)
    assert found.text
    again = peers.LocalEngine(*lm, inputs=[demo.input for demo in DEMOS], ahead=1)
    assert peers.copro(again, HUMAN, DEMOS, breadth=2, depth=1, proposal_tokens=8, answer_tokens=3) == found


def test_auto_instruct_is_an_optimiser_of_dspy(dspy):
    """A program's own model writes instructions and follows them: only the one that says `sum` makes it add."""
    from lib.autoinstruct.teleprompter import AutoInstruct

    class Writer(Scripted):
        def complete(self, request):
            asked = [part.text for message in request.messages for part in message.parts]
            if any("Write only the instruction" in text or text.endswith("Instruction:") for text in asked):
                self.proposals.append(None)
                request = Request("local", messages=(Message.user("x"),), system="instruction optimizer")
                self.proposals[0] = "Give the sum." if len(self.requests) == 4 else f"Guess {len(self.requests)}."
            return super().complete(request)

    from dspy.lm15 import Message, Request

    program = dspy.Predict(dspy.Signature("question -> answer", HUMAN), max_tokens=7)
    trainset = [dspy.Example(question=d.input, answer=d.output).with_inputs("question") for d in DEMOS]
    lm = dspy.LM("local", engine=Writer([]), cache=False, num_retries=0)
    with dspy.context(lm=lm, adapter=peers.plain_adapter(), disable_history=True):
        best = AutoInstruct(peers.score, samples=1).compile(program, trainset=trainset)
    assert best.signature.instructions.startswith("Give the sum.")
    assert program.signature.instructions == HUMAN
    assert best.candidate_programs[0][0] == 100
    assert len(best.candidate_programs) == 8
    with pytest.raises(ValueError, match="at least one"):
        AutoInstruct(peers.score).compile(program, trainset=[])


def test_the_dspy_optimiser_runs_with_the_local_model(dspy, lm):
    from lib.autoinstruct import LocalChat
    from lib.autoinstruct.teleprompter import AutoInstruct

    engine = peers.LocalEngine(*lm, inputs=[demo.input for demo in DEMOS])
    program = dspy.Predict(dspy.Signature("question -> answer", HUMAN), max_tokens=3)
    trainset = [dspy.Example(question=d.input, answer=d.output).with_inputs("question") for d in DEMOS]
    optimiser = AutoInstruct(peers.score, generator=LocalChat(*lm), samples=1, max_tokens=8)
    lm15 = dspy.LM("local", engine=engine, cache=False, num_retries=0)
    with dspy.context(lm=lm15, adapter=peers.plain_adapter(), disable_history=True):
        best = optimiser.compile(program, trainset=trainset)
    scores = dict((text, score) for score, text in best.candidate_programs)
    assert scores[best.signature.instructions] == max(scores.values()) >= scores[HUMAN]
