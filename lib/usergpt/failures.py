"""How often a model fails a group of requests, by the verdict of a judge model (table 4 of arXiv:2310.12418).

The paper let people judge 20 answers a group of GPT-3.5 and GPT-4. Through `EndpointChatModel` the same can be asked of
any two models, with a third as the judge; no model of a size that runs here can judge, so nothing is claimed from one.
"""

from collections.abc import Sequence

from lib.usergpt.chat_models import ChatModel
from lib.usergpt.privacy import mask

QUESTION = """A person asked an AI assistant for something, and the assistant answered.
Request:
{request}

Answer:
{answer}

Does the answer give what the person needs, correctly and completely? Say one word: PASS or FAIL."""


def failed(model: ChatModel, judge: ChatModel, requests: Sequence[str]) -> list[bool | None]:
    """Whether the model's answer to each request fails; None where model or judge gave nothing that can be read."""
    asked = [mask(request) for request in requests]
    answers = model.complete(asked)
    questions = [QUESTION.format(request=r, answer=a.text) for r, a in zip(asked, answers, strict=True)]
    verdicts = judge.complete(questions)
    return [
        None if answer.fault or verdict.fault else _verdict(verdict.text)
        for answer, verdict in zip(answers, verdicts, strict=True)
    ]


def _verdict(text: str) -> bool | None:
    words = {word for word in ("PASS", "FAIL") if word in text.upper().split("\n")[0]}
    return "FAIL" in words if len(words) == 1 else None
