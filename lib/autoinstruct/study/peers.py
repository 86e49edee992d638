"""A peer from another library: DSPy's COPRO (its optimiser of instructions) with a local Hugging Face model.

COPRO asks a language model for better instructions than the one it is given, tries each on the demonstrations, shows
the model its attempts with their scores, and asks again. DSPy is an optional package (`pip install dspy`)
and is imported only when something here is called. Nothing leaves the machine: the language model is an engine of
this process, and DSPy's caches are off.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from lib import TenfoldError
from lib.autoinstruct.candidates import Candidate
from lib.autoinstruct.decoding import answer_groups, prompt_ids, stop_tokens
from lib.autoinstruct.metrics import first_line, rouge_l
from lib.autoinstruct.tasks import Demonstration, Task
from lib.core.chat import Decoding
from lib.core.local_chat import LocalChat

NAME = "local"  # what DSPy calls the model


def import_dspy() -> Any:
    """Import the package `dspy`; raises TenfoldError where it is not installed."""
    try:
        import dspy
    except ModuleNotFoundError as error:
        raise TenfoldError("DSPy is not installed here: `pip install dspy` brings it.") from error
    return dspy


class LocalEngine:
    """A local causal language model as an engine of `dspy.LM`: `complete(Request) -> Response`.

    Greedy requests are answered as `label` answers them: the system turn is the instruction, the last user turn the
    input. Where the input is one of `inputs`, all of these are decoded at once after that instruction, since an
    optimiser will ask for each. Sampled answers are drawn `ahead` at a time. Answers are kept in this object only.
    """

    def __init__(self, model: Any, tokenizer: Any, *, inputs: Sequence[str] = (), ahead: int = 1, seed: int = 0):
        self.model, self.tokenizer = model, tokenizer
        self.inputs, self.ahead, self.seed = tuple(inputs), ahead, seed
        self.requests = 0
        self._greedy: dict[tuple, str] = {}
        self._drawn: dict[tuple, list[str]] = {}

    def complete(self, request: Any) -> Any:
        """Answer a `dspy.lm15.Request`."""
        lm15 = import_dspy().lm15
        self.requests += 1
        system, question = _text(request.system), _text(request.messages[-1].parts)
        config = request.config
        options = (system, question, config.max_tokens or 16)
        text = self._sample(*options, config.temperature) if config.temperature else self._answer(*options)
        parts = (lm15.TextPart(text or "\n"),)  # DSPy takes an empty answer for a failure
        message = lm15.Message(role="assistant", parts=parts)
        return lm15.Response(id=None, model=NAME, message=message, finish_reason="stop", usage=lm15.Usage())

    def _answer(self, system: str, question: str, longest: int) -> str:
        if (system, question, longest) not in self._greedy:
            together = self.inputs if question in self.inputs else (question,)
            prompts = [prompt_ids(self.tokenizer, system, text) for text in together]
            answers = answer_groups(self.model, [prompts], stops=stop_tokens(self.tokenizer), max_new_tokens=longest)
            for text, tokens in zip(together, answers.tokens, strict=True):
                self._greedy[system, text, longest] = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return self._greedy[system, question, longest]

    def _sample(self, system: str, question: str, longest: int, temperature: float) -> str:
        left = self._drawn.setdefault((system, question, longest, temperature), [])
        if not left:
            seed = self.seed + self.requests
            decoding = Decoding(temperature=temperature, max_tokens=longest, n=self.ahead, seed=seed)
            turns = [{"role": "system", "content": system}] if system else []
            turns.append({"role": "user", "content": question})
            left += LocalChat(self.model, self.tokenizer).complete(turns, decoding).texts
        return left.pop(0)


def _text(parts: Any) -> str:
    """Text of a system turn or a message, of whichever form DSPy gives it."""
    if not parts or isinstance(parts, str):
        return parts or ""
    return "\n".join(getattr(part, "text", "") for part in parts)


@cache
def plain_adapter() -> Any:
    """Make a DSPy adapter without markers, for models that cannot keep DSPy's own format.

    The signature's instruction is the system turn; a single input is the user turn as it is, several are named, one a
    paragraph, and so is the output where there are several. The whole completion is the first output field; the
    others are empty (COPRO's second one is a prefix that this format has no place for).
    """
    dspy = import_dspy()

    class Plain(dspy.Adapter):
        def format(self, signature, demos, inputs):
            texts = {name: _in_lines(inputs[name]) for name in signature.input_fields}
            asked = next(iter(texts.values()))
            if len(signature.output_fields) > 1:
                named = [f"{_title(name)}:\n{text}" for name, text in texts.items()]
                asked = "\n\n".join([*named, f"{_title(next(iter(signature.output_fields)))}:"])
            system = [{"role": "system", "content": signature.instructions}] if signature.instructions else []
            return [*system, {"role": "user", "content": asked}]

        def parse(self, signature, completion):
            first, *others = signature.output_fields
            return {first: completion.strip()} | dict.fromkeys(others, "")

    return Plain()


def _in_lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def score(example: Any, prediction: Any, trace: Any = None) -> float:
    """Give ROUGE-L of the answer's first line, in 0..1 (1 for an exact match): the metric that COPRO maximises."""
    return rouge_l(first_line(prediction.answer), (example.answer,))


def copro(
    engine: Any,
    instruction: str,
    demonstrations: Sequence[Demonstration],
    *,
    breadth: int = 3,
    depth: int = 2,
    temperature: float = 1.0,
    proposal_tokens: int = 64,
    answer_tokens: int = 16,
) -> Candidate:
    """Search as COPRO does from a first instruction, for the one with the best `score` on the demonstrations.

    `engine` proposes and answers (a `LocalEngine`, or any engine of DSPy's); `breadth` instructions in each of
    `depth` rounds. COPRO tries the first instruction last, so that a proposal wins a tie against it. Raises
    TenfoldError where DSPy is not installed, ValueError without demonstrations; an engine's failure ends the search.
    """
    dspy = import_dspy()
    if not demonstrations:
        raise ValueError("COPRO tries instructions on demonstrations: give at least one")
    shown = [dspy.Example(question=d.input, answer=d.output).with_inputs("question") for d in demonstrations]
    student = dspy.Predict(dspy.Signature("question -> answer", instruction), max_tokens=answer_tokens, temperature=0.0)
    lm = dspy.LM(NAME, engine=engine, cache=False, num_retries=0, max_tokens=proposal_tokens)
    optimiser = dspy.COPRO(metric=score, breadth=breadth, depth=depth, init_temperature=temperature)
    options = {"num_threads": 1, "display_progress": False}
    with _quietly(), dspy.context(lm=lm, adapter=plain_adapter(), disable_history=True, max_errors=1):
        best = optimiser.compile(student, trainset=shown, eval_kwargs=options)
    return Candidate(best.signature.instructions.strip(), "dspy", "COPRO")


def copro_on(task: Task, model: Any, tokenizer: Any, *, seed: int, breadth: int, **sizes: int) -> Candidate:
    """Search as COPRO does from a task's human instruction, with a local model; `sizes` are those of `copro`."""
    asked = [demonstration.input for demonstration in task.demonstrations]
    engine = LocalEngine(model, tokenizer, inputs=asked, ahead=breadth, seed=seed)
    return copro(engine, task.instruction, task.demonstrations, breadth=breadth, **sizes)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep DSPy's running commentary off the output; its errors stay."""
    logger = logging.getLogger("dspy")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
