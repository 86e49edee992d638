"""Auto-Instruct as an optimiser of DSPy, beside COPRO and MIPROv2: `AutoInstruct(metric).compile(program, trainset=…)`.

DSPy is an optional package (`pip install dspy`), imported when this module is.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lib import TenfoldError
from lib.autoinstruct.generation import generate
from lib.autoinstruct.modeling import Scorer
from lib.autoinstruct.tasks import Demonstration
from lib.autoinstruct.trainer import LabelTable, predict
from lib.core.chat import Chat, Decoding, Messages, Reply

try:
    import dspy
    from dspy.teleprompt import Teleprompter
except ModuleNotFoundError as error:
    raise TenfoldError("DSPy is not installed here: `pip install dspy` brings it.") from error


class DspyChat:
    """DSPy's language model as a `Chat`, so that the program's own model writes the instructions."""

    def __init__(self, lm: Any) -> None:
        self.lm, self.model = lm, str(lm.model)

    def complete(self, messages: Messages, decoding: Decoding | None = None, *, attempt: int = 0) -> Reply:
        """Reply to a question or a dialogue; a sampled text is asked for by itself, so that caches give none twice."""
        decoding, lm15 = decoding or Decoding(), dspy.lm15
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        system = "\n".join(turn["content"] for turn in turns if turn["role"] == "system")
        said = tuple(
            lm15.Message(role=turn["role"], parts=(lm15.TextPart(turn["content"]),))
            for turn in turns
            if turn["role"] != "system"
        )
        config = lm15.Config(temperature=decoding.temperature, max_tokens=decoding.max_tokens)
        request = lm15.Request(self.model, messages=said, system=system or None, config=config)
        texts, ends = [], []
        for index in range(decoding.n):
            given = self.lm(request, rollout_id=(decoding.seed or 0) + 1_000 * (attempt + 1) + index)
            texts.append("".join(getattr(part, "text", "") for part in given.message.parts).strip())
            ends.append(str(given.finish_reason or ""))
        return Reply(tuple(texts), tuple(ends))


class AutoInstruct(Teleprompter):
    """Optimise the instruction of every predictor of a program: written by meta-prompts, then chosen.

    `generator` writes (the program's own model where none is given). A trained `ranker` chooses from the inputs alone;
    without one every candidate is tried in the program on `valset` (or `trainset`), and the best by `metric` is kept,
    the program's own instruction at a tie. `metric(example, prediction, trace)` is as in DSPy.
    """

    def __init__(
        self,
        metric: Callable[..., float],
        *,
        generator: Chat | None = None,
        ranker: Scorer | None = None,
        samples: int = 3,
        demonstrations: int = 3,
        max_tokens: int = 512,
        seed: int = 0,
        num_threads: int = 1,
    ) -> None:
        super().__init__()
        self.metric, self.generator, self.ranker = metric, generator, ranker
        self.demonstrations, self.num_threads = demonstrations, num_threads
        self.options: dict[str, Any] = {"samples": samples, "max_tokens": max_tokens, "seed": seed}

    def compile(self, student: Any, *, trainset: Sequence[Any], teacher: Any = None, valset: Any = None) -> Any:
        """Return a copy of the program with the chosen instructions; `candidate_programs` lists (score, instruction).

        Raises ValueError without a training example.
        """
        if not trainset:
            raise ValueError("instructions are written and tried by examples: give a trainset of at least one")
        program = student.deepcopy()
        chat = self.generator or DspyChat(dspy.settings.lm)
        evaluate = dspy.Evaluate(
            devset=list(valset or trainset), metric=self.metric, num_threads=self.num_threads, display_progress=False
        )
        tried: list[tuple[float, str]] = []
        for predictor in program.predictors():
            signature, shown = predictor.signature, self._shown(predictor.signature, trainset)
            candidates = generate(chat, signature.instructions, shown[: self.demonstrations], **self.options)
            scored = []
            for candidate in candidates if self.ranker is None else ():
                predictor.signature = signature.with_instructions(candidate.text)
                scored.append((float(evaluate(program).score), candidate.text))
            if self.ranker is not None:
                table = LabelTable.without_labels("", [d.input for d in shown] or [signature.instructions], candidates)
                means = predict(self.ranker, [table])[0].mean(0)
                scored = [(float(mean), candidate.text) for mean, candidate in zip(means, candidates, strict=True)]
            predictor.signature = signature.with_instructions(max(scored, key=lambda pair: pair[0])[1])
            tried += scored
        program._compiled, program.candidate_programs = True, sorted(tried, reverse=True)
        return program

    @staticmethod
    def _shown(signature: Any, trainset: Sequence[Any]) -> list[Demonstration]:
        """Examples that have all fields of a predictor, as demonstrations: a single field as it is, several named."""

        def text(example: Any, names: Sequence[str]) -> str:
            return str(example[names[0]]) if len(names) == 1 else "\n".join(f"{n}: {example[n]}" for n in names)

        asked, answered = list(signature.input_fields), list(signature.output_fields)
        answered = [name for name in answered if name != "reasoning"]
        whole = [example for example in trainset if all(name in example for name in (*asked, *answered))]
        return [Demonstration(text(example, asked), text(example, answered)) for example in whole]
