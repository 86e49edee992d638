"""SPIN (Chen et al., arXiv:2401.01335): no expert at all; the answers of the seed data beat the policy's own.

A baseline of arXiv:2407.02119. Its loss is DPO's on pairs (reference answer, own response), so only the pairs are made.
"""

from collections.abc import Sequence

from lib.preference.prompts import Question
from lib.preference.sampling import Response


def self_play_rows(
    asked: Sequence[Question],
    drawn: Sequence[Sequence[Response]],
    tokenizer,
    *,
    max_tokens: int,
) -> list[dict[str, list[int]]]:
    """Token ids of SPIN's pairs: each question's real answer, cut at `max_tokens` tokens, over its first own response.

    Raises ValueError where a response equals the answer's tokens (such a pair says nothing).
    """
    rows = []
    for question, responses in zip(asked, drawn, strict=True):
        answer = tokenizer(question.answer, add_special_tokens=False).input_ids[:max_tokens]
        own = list(responses[0].tokens)
        if own == answer:
            raise ValueError(f"the policy repeats the real answer to {question.text[:60]!r}: leave that question out")
        rows.append({"prompt_ids": list(question.tokens), "chosen_ids": answer, "rejected_ids": own})
    return rows
