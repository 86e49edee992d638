"""Annotation by any chat model, concurrent, with failures set aside: the paper's free-form labels, or a written guide.

Prompts are a function of the requests and the pool's state at their part of the corpus, so that with a client that
keeps its replies (`lib.core.chat.ChatClient` on a journal) nothing is asked twice after a crash, by nobody. Requests
are masked before they are cut and sent. The wording is ours; the layout of numbered inputs and outputs with three
bracketed fields is the paper's (section 3 of arXiv:2310.12418).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lib.core.chat import ChatFailed, Decoding, Messages, Reply
from lib.core.store import key_of
from lib.usergpt.conversations import Annotation, Conversation, batched
from lib.usergpt.pool import Demonstration, DemonstrationPool
from lib.usergpt.replies import FIELDS, read_choices, read_outputs
from lib.usergpt.taxonomy import OTHER, Kind, Taxonomy

STEPS = """You label what people asked an AI assistant. Do three things for each input:
1. Name the domain of the request in one to three words.
2. Say in one short sentence what the person wants.
3. Name the types of task, from coarse to fine, with commas between them. There may be several.
Keep exactly the format of the outputs shown, and label each input once."""
TRIGGER = "Now label the following inputs in the same format."
ENDING = "Write the outputs for these {count} inputs, each under its own line such as ** Output 1 **."
GUIDE = """You label what a person asks an AI assistant: the main type of task, and the domain that it is about.

Types of task:
{tasks}

Domains: {domains}.

Answer with the name of the type of task, a comma, and the name of the domain."""
ASK = 'The request:\n"""\n{request}\n"""\nType of task, and domain:'


@runtime_checkable
class ChatModel(Protocol):
    """Anything that answers many prompts at once: `lib.core.chat.ChatClient`, a `LocalChat`, or your own."""

    model: str

    def complete_many(
        self, questions: Sequence[Messages], decoding: Decoding | None = None, *, attempt: int = 0
    ) -> Sequence[Reply | ChatFailed]:
        """Reply to each, in order, with the failure in its place where there is none; another attempt may differ."""
        ...


class FreeForm:
    """The paper's prompt: `per_call` requests after `k` demonstrations of a pool, labelled in free words.

    Which demonstrations are shown depends on the requests, the pool and the seed alone.
    """

    def __init__(self, pool: DemonstrationPool, *, k: int = 3, seed: int = 0) -> None:
        self.pool, self.k, self.seed, self.per_call = pool, k, seed, pool.per_call

    def messages(self, requests: Sequence[str]) -> str:
        """Show k demonstrations, and ask for the labels of the requests."""
        return build_prompt(requests, self.pool.draw(self.k, Random(key_of(self.seed, *requests))))

    def schema(self, count: int) -> dict[str, Any]:
        """Describe a list of outputs."""
        text = {"type": "string"}
        fields = {"domain": text, "summary": text, "task types": {"type": "array", "items": text, "minItems": 1}}
        one = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
        outputs = {"type": "array", "items": one, "minItems": count, "maxItems": count}
        return _object({"outputs": outputs})

    def read(self, reply: Reply, identities: Sequence[str]) -> list[Annotation]:
        """Read each output by its number; a broken one costs its own conversation, never its neighbours."""
        return read_outputs(reply.text, identities, cut_off=reply.finish[:1] == ("length",))


class Guide:
    """The written guide: a chat model picks one of the taxonomy's task types and domains, by name, a request a call.

    The guide and the taxonomy's labelled requests, as turns of the dialogue, come first and are the same for all
    requests, so that a server reads them once. (Small models copy a letter that they are shown, and choose names by
    what the request is about.) With `logprobs` asked for, `scores` gives what the model thought of every label.
    """

    per_call = 1

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.names: dict[Kind, dict[str, str]] = {kind: taxonomy.names(kind) for kind in ("tasks", "domains")}
        if any("," in name for own in self.names.values() for name in own.values()):
            raise ValueError("a guide's answer parts two names by a comma: give the labels names without one")
        tasks = [f"- {label.name}: {label.definition}" for label in taxonomy.tasks]
        tasks.append(f"- {self.names['tasks'][OTHER]}: none of these, a mere 'continue', or no request.")
        guide = GUIDE.format(tasks="\n".join(tasks), domains=", ".join(self.names["domains"].values()))
        self.beginning = [{"role": "system", "content": guide}]
        for row in taxonomy.shown:
            answer = f"{self.names['tasks'][row.task]}, {self.names['domains'][row.domain]}"
            self.beginning += [_asked(row.request), {"role": "assistant", "content": answer}]

    def messages(self, requests: Sequence[str]) -> list[dict[str, str]]:
        """Give the guide, what is shown, and one request."""
        (request,) = requests
        return [*self.beginning, _asked(request)]

    def schema(self, count: int) -> dict[str, Any]:
        """Describe a name of each kind."""
        task, domain = ({"enum": list(self.names[kind].values())} for kind in ("tasks", "domains"))
        return _object({"task": task, "domain": domain})

    def read(self, reply: Reply, identities: Sequence[str]) -> list[Annotation]:
        """Read the two names; anything else is a fault."""
        (identity,) = identities
        chosen = read_choices(reply.text, self.names["tasks"], self.names["domains"])
        if chosen is None:
            return [Annotation(identity, fault="no names of the guide")]
        task, domain = ("" if code == OTHER else code for code in chosen)
        return [Annotation(identity, domain or None, (task,) if task else ())]

    def scores(self, reply: Reply, kind: Kind) -> list[float] | None:
        """Log-probability of each label as the reply's name of the kind, given what stands before; None if not told."""
        places = reply.logprobs[0] if reply.logprobs else ()
        if kind == "domains":
            comma = next((at for at, place in enumerate(places) if "," in place["token"]), len(places))
            places = places[comma + 1 :]
        return name_scores(places, list(self.names[kind].values())) if places else None


def name_scores(places: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[float]:
    """Log-probability that a reply's next words are each of the names, by the alternatives told at each token.

    Along the name that was written the probabilities of its tokens are multiplied. A name that leaves it gets what is
    told of the token at which it does; names that begin with that token alike share it equally, since what would follow
    is not told. A name whose token is not told gets the least of that place, less 1.
    """
    found: dict[str, float] = {}
    written, before, running = "", 0.0, list(names)
    for place in places:
        told = {row["token"]: row["logprob"] for row in place["top_logprobs"]} | {place["token"]: place["logprob"]}
        begun = (written + place["token"]).lstrip()
        for token, value in told.items():
            text = (written + token).lstrip()
            alike = [name for name in running if name.startswith(text)] if text != begun and token.strip() else []
            for name in alike:
                found[name] = float(np.logaddexp(found.get(name, -np.inf), before + value - np.log(len(alike))))
        ended = [name for name in running if not name.startswith(begun)]
        lowest = before + min(told.values()) - 1
        found |= {name: lowest for name in ended if name not in found}
        running = [name for name in running if name.startswith(begun)]
        written, before = begun, before + place["logprob"]
        if len(running) < 2:
            break
    for name in running:
        found[name] = float(np.logaddexp(found.get(name, -np.inf), before - np.log(len(running))))
    return [found[name] for name in names]


Form = FreeForm | Guide


class ChatAnnotator:
    """Labels conversations by a chat model and a form (`FreeForm`, `Guide`); `characters` of each are shown, masked.

    A part of a corpus (`part_size` conversations) is asked side by side and a pool grows at its end; with a part of
    one call that is the paper's order. What fails or cannot be read is set aside, and asked again at the end, alone,
    `attempts` times. `structured` asks for JSON by a schema, of a server that offers it.
    """

    def __init__(
        self, model: ChatModel, form: Form, *, characters: int = 2000, attempts: int = 2, part_size: int = 512,
        structured: bool = False, decoding: Decoding | None = None,
    ) -> None:  # fmt: skip
        self.model, self.form, self.characters, self.attempts = model, form, characters, attempts
        self.part_size, self.structured, self.decoding = part_size, structured, decoding
        self.pool = form.pool if isinstance(form, FreeForm) else None
        drawn = (decoding or getattr(model, "decoding", None) or Decoding()).request()
        pool = None if self.pool is None else [self.pool.rule, float(self.pool.share), self.pool.state()]
        asked = form.messages(["x"] * form.per_call)
        self._settings = key_of(model.model, asked, characters, drawn, structured, pool)

    def annotate(self, conversations: Iterable[Conversation]) -> Iterator[Annotation]:
        """Yield one annotation for each conversation, part by part, each part's failures asked again at its end."""
        for batch in batched(conversations, self.part_size):
            requests, state = self.requests(batch), self.state()
            found = self.first([c.id for c in batch], requests)
            after = self.state()
            self.restore(state)
            again = self.again({a.id: r for a, r in zip(found, requests, strict=True) if a.fault})
            self.restore(after)
            yield from (again.get(annotation.id, annotation) for annotation in found)

    def requests(self, batch: Iterable[Conversation]) -> list[str]:
        """Return what is shown of each conversation: masked, then cut."""
        masked = (conversation.masked() for conversation in batch)
        return [c.text if len(c.text) <= self.characters else c.excerpt(self.characters) for c in masked]

    def first(self, identities: Sequence[str], requests: Sequence[str]) -> list[Annotation]:
        """Ask once for each call of a part, all side by side, and let the pool grow."""
        calls = list(batched(zip(identities, requests, strict=True), self.form.per_call))
        found = [annotation for call in self._asked(calls) for annotation in call]
        if self.pool is not None:
            self.pool.grow(found, requests)
        return found

    def again(self, aside: dict[str, str]) -> dict[str, Annotation]:
        """Ask for each of the requests set aside alone, until it can be read; the pool stays as it is."""
        found: dict[str, Annotation] = {}
        for attempt in range(1, self.attempts + 1):
            left = [(i, request) for i, request in aside.items() if i not in found or found[i].fault]
            for (annotation,) in self._asked([[item] for item in left], attempt):
                found[annotation.id] = annotation
        return found

    def _asked(self, calls: Sequence[Sequence[tuple[str, str]]], attempt: int = 0) -> list[list[Annotation]]:
        """Annotations of each call, asked in an order of this process's own, so that two seldom want the same."""
        order = Random().sample(range(len(calls)), len(calls))
        found: dict[int, list[Annotation]] = {}
        for count in sorted({len(call) for call in calls}):
            same = [place for place in order if len(calls[place]) == count]
            questions = [self.form.messages([request for _, request in calls[place]]) for place in same]
            replies = self.model.complete_many(questions, self._decoding(count), attempt=attempt)
            for place, reply in zip(same, replies, strict=True):
                identities = [identity for identity, _ in calls[place]]
                if isinstance(reply, ChatFailed):
                    found[place] = [Annotation(identity, fault=reply.reason) for identity in identities]
                else:
                    found[place] = self.form.read(reply, identities)
        return [found[place] for place in range(len(calls))]

    def _decoding(self, count: int) -> Decoding | None:
        if not self.structured:
            return self.decoding
        schema = {"name": "labels", "strict": True, "schema": self.form.schema(count)}
        base = self.decoding or getattr(self.model, "decoding", Decoding())
        return replace(base, extra={**base.extra, "response_format": {"type": "json_schema", "json_schema": schema}})

    def settings(self) -> str:
        """Name what the labels hang on besides the corpus, as the annotator was made: its pool has grown since."""
        return self._settings

    def state(self) -> dict[str, Any]:
        """Return the pool's state, as JSON can hold it."""
        return {} if self.pool is None else self.pool.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Become what a `state` says."""
        if self.pool is not None:
            self.pool.restore(state)


def build_prompt(requests: Sequence[str], demonstrations: Sequence[Demonstration]) -> str:
    """Ask for the labels of some requests after k demonstrations."""
    shown = [f"** Input {i} **\n{d.request}" for i, d in enumerate(demonstrations, 1)]
    labels = [(d.domain, d.summary, ", ".join(d.tasks)) for d in demonstrations]
    fields = ["\n".join(f"[{field}] {value}" for field, value in zip(FIELDS, own, strict=True)) for own in labels]
    answers = [f"** Output {i} **\n{own}" for i, own in enumerate(fields, 1)]
    asked = [f"** Input {i} **\n{request}" for i, request in enumerate(requests, 1)]
    ending = ENDING.format(count=len(requests))
    return "\n\n".join([STEPS, *shown, *answers, TRIGGER, *asked, ending])


def _asked(request: str) -> dict[str, str]:
    return {"role": "user", "content": ASK.format(request=request)}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
