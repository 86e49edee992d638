"""Prompts that put an instruction before an example: zero-shot, or with demonstrations, in the model's chat template.

The instruction is the system turn, a demonstration a user and an assistant turn, the example the last user turn.
Deviation: the paper's completion model got `instruction, demonstrations, Input:, Output:` as plain text; so does a
model here whose tokenizer has no chat template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Demonstration:
    """A worked example of a task."""

    input: str
    output: str


def prompt_text(tokenizer: Any, instruction: str, example: str, *, demonstrations: Sequence[Demonstration] = ()) -> str:
    """Prompt up to where the model's answer begins; an empty instruction leaves the system turn empty."""
    if getattr(tokenizer, "chat_template", None) is None:
        parts = [instruction] if instruction else []
        parts += [f"Input: {demo.input}\nOutput: {demo.output}" for demo in demonstrations]
        return "\n\n".join([*parts, f"Input: {example}\nOutput:"])
    messages = [{"role": "system", "content": instruction}]
    for demo in demonstrations:
        messages += [{"role": "user", "content": demo.input}, {"role": "assistant", "content": demo.output}]
    messages.append({"role": "user", "content": example})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def prompt_ids(
    tokenizer: Any, instruction: str, example: str, *, demonstrations: Sequence[Demonstration] = ()
) -> list[int]:
    """Token ids of `prompt_text`, as plain generation would get them."""
    text = prompt_text(tokenizer, instruction, example, demonstrations=demonstrations)
    plain = getattr(tokenizer, "chat_template", None) is None
    return tokenizer(text, add_special_tokens=plain).input_ids


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of a whole reply: the answer and the token that ends it, so that a longer reply is another reply."""
    plain = getattr(tokenizer, "chat_template", None) is None
    ids = tokenizer((" " if plain else "") + answer, add_special_tokens=False).input_ids
    return [*ids, tokenizer.eos_token_id]
