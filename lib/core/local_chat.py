"""A transformers model that answers as an endpoint does; for an endpoint: `lib.core.chat.ChatClient`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from lib.core.chat import ChatFailed, Decoding, Messages, Reply, reply_key
from lib.core.generation import Warping, decode, draw, read_groups

SHARED = 48  # tokens that prompts must begin with alike to be read together
LONGEST = 512  # tokens of a reply where the settings name no limit


class LocalChat:
    """A causal language model in its chat template; what prompts begin with alike (a guide, examples) is read once.

    A reply's random numbers come from its question, the settings and `seed`, so that what is asked beside it changes
    it by rounding only, and two runs that ask the same get the same. `prefill` begins every reply, so that a small
    model finds the format; without `template` a question is read as it stands. At most `batch_rows` texts are written
    at once. Without `decoding` it samples at T = 1.
    """

    def __init__(
        self, network: Any, tokenizer: Any, *, decoding: Decoding | None = None, prefill: str = "",
        template: bool = True, batch_rows: int = 48, seed: int = 0, progress: bool = False,
    ) -> None:  # fmt: skip
        self.network, self.tokenizer, self.decoding = network, tokenizer, decoding or Decoding()
        self.prefill, self.template, self.batch_rows = prefill, template, batch_rows
        self.seed, self.progress = seed, progress

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.network.config.name_or_path

    def complete(self, messages: Messages, decoding: Decoding | None = None, *, attempt: int = 0) -> Reply:
        """Reply to a question or a dialogue; another attempt draws anew. Raises ChatFailed where it does not fit."""
        (reply,) = self.complete_many([messages], decoding, attempt=attempt)
        if isinstance(reply, ChatFailed):
            raise reply
        return reply

    @torch.inference_mode()
    def complete_many(
        self, questions: Sequence[Messages], decoding: Decoding | None = None, *, attempt: int = 0
    ) -> list[Reply | ChatFailed]:
        """Reply to each question, in order; one too long for the model has its failure in its place.

        Raises ValueError for `stop` and `extra`, which only an endpoint knows.
        """
        decoding = decoding or self.decoding
        if decoding.stop or decoding.extra:
            raise ValueError("a LocalChat ends where the model does and knows no settings of a server: leave out stop")
        longest = decoding.max_tokens or LONGEST
        prompts = [self._encoded(question) for question in questions]
        # Recurrent models, and those whose attention falls with distance, name no longest text.
        positions = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)
        room = float("inf") if positions is None else positions - longest
        replies: dict[int, Reply | ChatFailed] = {
            i: ChatFailed(self.model, f"a prompt of {len(ids)} tokens does not fit", paid=False)
            for i, ids in enumerate(prompts) if len(ids) > room
        }  # fmt: skip
        keys = [reply_key(self.model, question, decoding, attempt) for question in questions]
        batches = self._batches([i for i in range(len(prompts)) if i not in replies], prompts, decoding.n)
        for rows in tqdm(batches, desc="write", disable=not self.progress):
            written = self._replies([prompts[i] for i in rows], [keys[i] for i in rows], decoding, longest)
            replies |= zip(rows, written, strict=True)
        return [replies[i] for i in range(len(prompts))]

    def _encoded(self, question: Messages) -> list[int]:
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        if self.template:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        else:
            text = "".join(message["content"] for message in messages)
        return self.tokenizer(text + self.prefill, add_special_tokens=False).input_ids

    def _batches(self, asked: Sequence[int], prompts: Sequence[list[int]], n: int) -> list[list[int]]:
        """Return batches of questions, those that begin alike together, and among them the shortest first."""
        order = sorted(asked, key=lambda i: (prompts[i][:SHARED], len(prompts[i])))
        each = max(1, self.batch_rows // n)
        return [order[start : start + each] for start in range(0, len(order), each)]

    def _replies(self, prompts: list[list[int]], keys: list[str], decoding: Decoding, longest: int) -> list[Reply]:
        groups: dict[tuple[int, ...], list[list[int]]] = {}
        for prompt in prompts:
            groups.setdefault(tuple(prompt[:SHARED]), []).extend([prompt] * decoding.n)
        choosing = _Choosing(keys, decoding, longest, self.seed, self.tokenizer)
        context, last = read_groups(self.network, list(groups.values()))
        ends = self.network.generation_config.eos_token_id
        stops = {self.tokenizer.eos_token_id, *([ends] if isinstance(ends, int) else ends or [])} - {None}
        made = decode(context, last, max_new_tokens=longest, stops=sorted(stops), choose=choosing)
        # A row that has ended is asked about until it leaves the batch: what was told of it then is no reply's.
        told = [own[: len(tokens)] for own, tokens in zip(choosing.told, made.tokens, strict=False)]
        texts = self.tokenizer.batch_decode(made.tokens, skip_special_tokens=True)
        texts = [self.prefill + text for text in texts]
        ends = ["stop" if ended else "length" for ended in made.ended]
        counts = [len(tokens) for tokens in made.tokens]
        return [
            Reply(tuple(texts[own]), tuple(ends[own]), sum(counts[own]), tuple(told[own]))
            for own in (slice(i, i + decoding.n) for i in range(0, len(texts), decoding.n))
        ]


class _Choosing:
    """Draws each row's tokens by its own random numbers, and notes what was told of the alternatives."""

    def __init__(self, keys: Sequence[str], decoding: Decoding, longest: int, seed: int, tokenizer: Any) -> None:
        self.warping = Warping(decoding.temperature, top_p=1.0 if decoding.top_p is None else decoding.top_p)
        self.tokenizer, self.most = tokenizer, decoding.logprobs
        entropy = [[int(key, 16), *([seed] if seed else [])] for key in keys]
        numbers = [np.random.default_rng(own).random((decoding.n, longest)) for own in entropy]
        self.uniform = torch.from_numpy(np.concatenate(numbers))
        self.told: list[list[dict[str, Any]]] = [[] for _ in self.uniform] if self.most is not None else []

    def __call__(
        self, logits: Float[Tensor, "running vocab"], rows: Int[Tensor, " running"], step: int
    ) -> Int[Tensor, " running"]:
        """Draw the next token of each row that is still running."""
        if self.warping.greedy:
            chosen = logits.argmax(-1)
        else:
            uniform = self.uniform.to(logits.device)[rows, step]
            chosen = draw(self.warping.probs(logits), uniform=uniform)
        if self.most is not None:
            self._tell(logits.float().log_softmax(-1), chosen, rows.tolist(), self.most)
        return chosen

    def _tell(self, logs: Tensor, chosen: Tensor, rows: list[int], most: int) -> None:
        values, tokens = logs.topk(most, dim=-1)
        own = logs.gather(-1, chosen[:, None])[:, 0].tolist()
        for place, row in enumerate(rows):
            pairs = zip(self._texts(tokens[place]), values[place].tolist(), strict=True)
            top = [{"token": text, "logprob": round(value, 4)} for text, value in pairs]
            (name,) = self._texts(chosen[place : place + 1])
            self.told[row].append({"token": name, "logprob": round(own[place], 4), "top_logprobs": top})

    def _texts(self, tokens: Tensor) -> list[str]:
        """Texts of tokens as an endpoint writes them, as far as the first blank is concerned."""
        names = self.tokenizer.convert_ids_to_tokens(tokens.tolist())
        return [name.replace("Ġ", " ").replace("▁", " ") for name in names]
