"""Questions and answers out of records of the usual shapes, and their token ids in a tokenizer's own template."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

CHATS = {True: ("conversations", "from", "value"), False: ("messages", "role", "content")}
ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant", "chatgpt")


def exchanges(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Question and answer of each record: of a chat's first two turns `{conversations: [{from, value}]}` where they are
    one (or `{messages: [{role, content}]}`), of `question` and `answer`, or of `instruction` (with its `input`) and
    `output`.

    Raises ValueError for records of another shape.
    """
    for record in records:
        if "conversations" in record or "messages" in record:
            name, speaker, said = CHATS["conversations" in record]
            turns = record[name][:2]
            speakers = [turn[speaker] for turn in turns]
            if len(speakers) == 2 and speakers[0] in ASKING and speakers[1] in ANSWERING:
                yield turns[0][said], turns[1][said]
        elif "question" in record and "answer" in record:
            yield record["question"], record["answer"]
        elif "instruction" in record and "output" in record:
            yield "\n".join(part for part in (record["instruction"], record.get("input")) if part), record["output"]
        else:
            raise ValueError(
                f"a record has {', '.join(record)}: give conversations, question and answer, or instruction and output"
            )


def prompt_ids(tokenizer: Any, question: str, *, system: str | None = None) -> list[int]:
    """Token ids of a question in the tokenizer's chat template, up to where the assistant begins."""
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False).input_ids
