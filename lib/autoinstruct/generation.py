"""The paper's generator: several samples of every style's meta-prompt from a capable model, the seed instruction first.

A style is a request to that model. Few-shot, the request shows demonstrations; zero-shot it does not, and the style
that explains examples falls away. Three further requests ask for no style but show complete worked tasks whose
instructions are alike in length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from lib.autoinstruct.candidates import Candidate, CandidateSet, collect
from lib.autoinstruct.tasks import Demonstration
from lib.core.chat import Chat, Decoding, Messages, Reply
from lib.core.scoring import padded

REQUESTS = {
    "one-sentence": "Write the instruction for the following task in a single sentence.",
    "one-paragraph": "Write the instruction for the following task as one detailed paragraph.",
    "step-by-step": "Write the instruction for the following task as a list of steps to follow.",
    "use-example": "Write the instruction for the following task, and explain each of the given examples in it.",
}
WORKED = ("worked-tasks-1", "worked-tasks-2", "worked-tasks-3")
FEW_SHOT = (*REQUESTS, *WORKED)
ZERO_SHOT = tuple(style for style in FEW_SHOT if style != "use-example")


@dataclass(frozen=True)
class WorkedTask:
    """A complete task to imitate: its short description, examples and full instruction."""

    task: str
    demonstrations: tuple[Demonstration, ...]
    instruction: str


def meta_prompt(
    style: str,
    task: str,
    demonstrations: Sequence[Demonstration] = (),
    *,
    worked: Sequence[WorkedTask] = (),
) -> str:
    """Request an instruction in a style, for a task (the seed instruction) with its demonstrations.

    Raises ValueError for an unknown style, `use-example` without demonstrations, or a worked style without tasks.
    """
    if style not in FEW_SHOT:
        raise ValueError(f"there is no style {style!r}: use one of {', '.join(FEW_SHOT)}")
    if style == "use-example" and not demonstrations:
        raise ValueError("the style 'use-example' explains examples: give demonstrations, or use the zero-shot styles")
    if style in WORKED:
        if not worked:
            raise ValueError(f"the style {style!r} imitates worked tasks: give some")
        shown = [_block(w.task, w.demonstrations if demonstrations else ()) + f" {w.instruction}" for w in worked]
        return "\n\n".join([*shown, _block(task, demonstrations)])
    return f"{REQUESTS[style]}\n\n{_block(task, demonstrations)}"


def _block(task: str, demonstrations: Sequence[Demonstration]) -> str:
    lines = [f"Task: {task}"]
    if demonstrations:
        lines.append("Examples:")
        lines += [f"Input: {demo.input}\nOutput: {demo.output}" for demo in demonstrations]
    return "\n".join([*lines, "Instruction:"])


def generate(
    chat: Chat,
    instruction: str,
    demonstrations: Sequence[Demonstration] = (),
    *,
    worked: Mapping[str, Sequence[WorkedTask]] | None = None,
    samples: int = 3,
    max_tokens: int = 512,
    seed: int = 0,
    progress: bool = False,
) -> CandidateSet:
    """Write candidates of a task: its own instruction, then `samples` of every style (few-shot with demonstrations).

    `chat` answers the meta-prompts: a `ChatClient`, a `LocalGenerator`, or your own. `worked` holds the tasks to
    imitate, by style; styles that need them are left out where there are none. With all seven few-shot styles and three
    samples these are the paper's 22 candidates, zero-shot 19.
    """
    worked = worked or {}
    decoding = Decoding(temperature=1.0, top_p=1.0, max_tokens=max_tokens, seed=seed, n=samples)
    styles = [s for s in (FEW_SHOT if demonstrations else ZERO_SHOT) if s not in WORKED or worked.get(s)]
    candidates = [Candidate(instruction, "human", "human")]
    for style in tqdm(styles, desc="meta-prompts", disable=not progress):
        prompt = meta_prompt(style, instruction, demonstrations, worked=worked.get(style, ()))
        candidates += [Candidate(text, "meta-prompt", style) for text in chat.complete(prompt, decoding).texts]
    return collect(candidates, demonstrations=demonstrations)


@dataclass
class LocalGenerator:
    """A causal language model in its chat template that replies like an endpoint does; `decoding` as in `core.chat`.

    The seed makes replies repeatable and leaves torch's state outside alone.
    """

    network: Any
    tokenizer: Any
    batch_rows: int = 48

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.network.config.name_or_path

    def complete(self, messages: Messages, decoding: Decoding | None = None, *, attempt: int = 0) -> Reply:
        """Reply to a question or a dialogue; another attempt draws anew."""
        return self.complete_many([messages], decoding, attempt=attempt)[0]

    @torch.inference_mode()
    def complete_many(
        self, questions: Sequence[Messages], decoding: Decoding | None = None, *, attempt: int = 0
    ) -> list[Reply]:
        """Reply to many questions, at most `batch_rows` texts at once."""
        decoding = decoding or Decoding()
        texts: list[str] = []
        each = max(1, self.batch_rows // decoding.n)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((decoding.seed or 0) + attempt)
            for start in range(0, len(questions), each):
                part = [self._encoded(messages) for messages in questions[start : start + each]]
                ids, present = padded(part, side="left", device=self.network.device)
                out = self.network.generate(
                    ids, attention_mask=present.long(), do_sample=True, temperature=decoding.temperature, top_k=0,
                    top_p=1.0 if decoding.top_p is None else decoding.top_p, num_return_sequences=decoding.n,
                    max_new_tokens=decoding.max_tokens or 512, pad_token_id=self.tokenizer.eos_token_id,
                )  # fmt: skip
                texts += self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [Reply(tuple(texts[i : i + decoding.n])) for i in range(0, len(texts), decoding.n)]

    def _encoded(self, messages: Messages) -> list[int]:
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        text = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False).input_ids
