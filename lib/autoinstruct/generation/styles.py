"""The paper's styles of instruction, as requests to a capable model, and which style a human instruction has.

Few-shot, the request shows demonstrations; zero-shot it does not, and the style that explains examples falls away.
Three further requests ask for no style but show complete worked tasks whose instructions are alike in length.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lib.autoinstruct.prompts import Demonstration

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
    """Request for an instruction in a style, of a task (the seed instruction) with its demonstrations.

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


STEPS = re.compile(
    r"\b(step \d|steps)\b|(^|[.!?]\s+)(first|second|next|then|finally)\b|^\s*\d[.)]", re.IGNORECASE | re.MULTILINE
)
EXAMPLE = re.compile(r"\b(for example|e\.g\.|for instance|example:)", re.IGNORECASE)
SENTENCE = re.compile(r"[.!?](\s|$)")


def style_of(instruction: str) -> str:
    """Style of an instruction by its form: with an example, in steps, one sentence, else one paragraph."""
    if EXAMPLE.search(instruction):
        return "use-example"
    if STEPS.search(instruction):
        return "step-by-step"
    return "one-sentence" if len(SENTENCE.findall(instruction.strip())) <= 1 else "one-paragraph"
