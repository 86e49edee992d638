"""Variants of an instruction made by rules from the demonstrations: a line on the answer's form, steps, examples.

They are what a capable model would add in each style; a small one cannot, so that rules stand in for it.
"""

import re
from collections.abc import Sequence

from lib.autoinstruct.generation.candidates import Candidate
from lib.autoinstruct.prompts import Demonstration

NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?%?")
BRACKETS = ("[]", "{}", "()", '""')


def format_line(demonstrations: Sequence[Demonstration]) -> str:
    """One sentence on the form of the answers, as the demonstrations show it; raises ValueError without any."""
    if not demonstrations:
        raise ValueError("the form of an answer is read off demonstrations: give at least one")
    answers = [demo.output.strip() for demo in demonstrations]
    for opening, closing in BRACKETS:
        if all(len(a) > 1 and a[0] == opening and a[-1] == closing for a in answers):
            return f"Write only the answer, between {opening} and {closing}."
    labels = sorted(set(answers))
    if (
        1 < len(labels) <= max(2, len(answers) // 2)
        and len(labels) < len(answers)
        and all(len(label) <= 20 for label in labels)
    ):
        return f"Answer with exactly one of: {', '.join(labels)}."
    if all(NUMBER.fullmatch(a) for a in answers):
        return "Answer with a number only."
    if all(len(a) == 1 and a.isalpha() for a in answers):
        return "Answer with a single letter only."
    longest = max(len(a.split()) for a in answers)
    if longest == 1:
        return "Answer with a single word only."
    return f"Answer in at most {longest} words, without explanation."


def variants(instruction: str, demonstrations: Sequence[Demonstration], *, shown: int = 2) -> list[Candidate]:
    """Rule-made candidates of every style from a seed instruction and demonstrations, `shown` of them spelled out."""
    seed, form = instruction.strip(), format_line(demonstrations)
    few = demonstrations[:shown]
    listed = "\n".join(f"{demo.input} -> {demo.output}" for demo in few)
    explained = " ".join(f'For example, if the input is "{demo.input}", answer "{demo.output}".' for demo in few)
    texts = {
        "format-line": f"{seed} {form}",
        "format-only": form,
        "use-example": f"{seed} {explained}",
        "use-example-format": f"{seed} {explained} {form}",
        "examples-only": f"Answer as in these examples.\n{listed}",
        "step-by-step": f"{seed}\nFirst, read the input. Second, work out the answer. Third, reply. {form}",
        "one-paragraph": f"You are given an input and must do the following task. {seed} Do not repeat the input and "
        f"do not explain your answer. {form}",
    }
    return [Candidate(text, "rule", style) for style, text in texts.items()]
