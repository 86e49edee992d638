"""Free-form task phrases without a language model: the verb of a request and what it is about ("write poem").

Instructions are usually summed up by their verb and its object; here both are found by word lists, so that thousands of
free-form labels cost seconds. Questions become "ask how", "ask what"; a text without either gets no phrase.
"""

import re
from collections.abc import Iterable, Iterator

from lib.usergpt.annotation import Annotation
from lib.usergpt.conversations import Conversation

VERBS = frozenset(
    "write create make give generate explain tell show summarize summarise translate rewrite rephrase paraphrase fix "
    "debug implement add change convert update find list describe suggest recommend design plan analyze analyse "
    "compare discuss evaluate review rate help build develop code program improve edit correct proofread answer solve "
    "calculate compute extract classify categorize identify provide draft outline continue finish complete expand "
    "elaborate act pretend play imagine use turn format sort remove replace modify refactor optimize optimise test "
    "check verify recount name define teach simplify shorten draw sketch prepare organize schedule estimate "
    "predict".split()
)
SKIPPED = frozenset(
    "a an the my your our this that these those me us it its some any more please also now then just for of in to on "
    "with about from and or as is are be all each one two three new another very so you i we he she they can could "
    "would should will want need like following given same below above short good best detailed simple up out".split()
)
QUESTIONS = frozenset("how what why which who when where is are do does did should".split())


def task_phrase(request: str) -> str:
    """Verb and object of a request's first instruction, "ask …" for a question, or "" where there is neither."""
    words = re.findall(r"[a-z][a-z+#-]*", request.lower()[:600])
    for place, word in enumerate(words[:40]):
        if word in VERBS:
            about = [w for w in words[place + 1 : place + 9] if w not in SKIPPED and w not in VERBS][:2]
            return " ".join([word, *about])
        if word in QUESTIONS and place < 3:
            about = [w for w in words[place + 1 : place + 9] if w not in SKIPPED and w not in QUESTIONS][:2]
            return " ".join(["ask", word, *about])
    return ""


class PhraseAnnotator:
    """Labels conversations by the phrase of their first turn; those without one are kept, with their fault."""

    def annotate(self, conversations: Iterable[Conversation]) -> Iterator[Annotation]:
        """Yield one annotation for each conversation."""
        for conversation in conversations:
            phrase = task_phrase(conversation.requests[0])
            yield Annotation(
                conversation.id, tasks=(phrase,) if phrase else (), fault="" if phrase else "no instruction found"
            )
