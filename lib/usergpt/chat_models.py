"""A local transformers model that answers many prompts as an endpoint does; for an endpoint: `ChatClient`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.core.chat import ChatFailed, Decoding, Messages, Reply
from lib.core.generation import decode, read_groups
from lib.core.scoring import by_length
from lib.core.store import key_of


class LocalChatModel:
    """A transformers chat model; prompts in batches, whose common beginning (a guide) is read once.

    Each prompt has its own random numbers: which prompts share its batch changes a reply by rounding only, and two runs
    that ask the same get the same. `prefill` begins the answer, so that a small model finds the format. A prompt longer
    than the context is a failure. Without `decoding` it samples at the paper's temperature 0.4.
    """

    def __init__(
        self, network: Any, tokenizer: Any, *, decoding: Decoding | None = None, prefill: str = "",
        batch_size: int = 8, seed: int = 0,
    ) -> None:  # fmt: skip
        self.network, self.tokenizer = network, tokenizer
        self.decoding = decoding or Decoding(temperature=0.4, max_tokens=800)
        self.prefill, self.batch_size, self.seed = prefill, batch_size, seed
        self.model = network.config.name_or_path

    @torch.inference_mode()
    def complete_many(
        self, questions: Sequence[Messages], decoding: Decoding | None = None, *, attempt: int = 0
    ) -> list[Reply | ChatFailed]:
        """Reply to each prompt, with the failure in its place; `top_p`, `stop` and `n` other than 1 are refused."""
        decoding = decoding or self.decoding
        if decoding.stop or decoding.n != 1 or decoding.top_p not in (None, 1):
            raise ValueError("a LocalChatModel draws one whole reply from the model's law: leave out top_p, stop and n")
        prompts = [self._encoded(question) for question in questions]
        room = self.network.config.max_position_embeddings - (decoding.max_tokens or 800)
        replies: dict[int, Reply | ChatFailed] = {
            i: ChatFailed(self.model, f"a prompt of {len(ids)} tokens does not fit")
            for i, ids in enumerate(prompts) if len(ids) > room
        }  # fmt: skip
        fitting = [i for i in range(len(prompts)) if i not in replies]
        for rows in by_length([len(prompts[i]) for i in fitting], rows=self.batch_size):
            chosen = [fitting[row] for row in rows]
            replies |= zip(chosen, self._replies([prompts[i] for i in chosen], decoding, attempt), strict=True)
        return [replies[i] for i in range(len(prompts))]

    def _encoded(self, question: Messages) -> list[int]:
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + self.prefill
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _replies(self, prompts: list[list[int]], decoding: Decoding, attempt: int) -> list[Reply]:
        context, hidden = read_groups(self.network, [prompts])
        keys = [key_of(self.seed, decoding.seed, attempt, prompt) for prompt in prompts]
        told: list[list[dict[str, Any]]] = [[] for _ in prompts]
        draws = partial(self._choose, OwnDraws(keys, float(decoding.temperature)), told, decoding.logprobs)
        stops = self.network.generation_config.eos_token_id
        stops = [stops] if isinstance(stops, int) else list(stops or [])
        found = decode(context, hidden, max_new_tokens=decoding.max_tokens or 800, stops=stops, choose=draws)
        texts = self.tokenizer.batch_decode(found.tokens, skip_special_tokens=True)
        rows = zip(texts, found.tokens, found.ended, told, strict=True)
        return [
            Reply((self.prefill + text,), ("stop" if ended else "length",), len(tokens), (said,) if said else ())
            for text, tokens, ended, said in rows
        ]

    def _choose(
        self, draws: "OwnDraws", told: list[list[dict[str, Any]]], most: int | None,
        logits: Float[Tensor, "running vocab"], rows: Int[Tensor, " running"], step: int,
    ) -> Int[Tensor, " running"]:  # fmt: skip
        chosen = draws(logits, rows)
        if most is not None:
            logs = logits.float().log_softmax(-1)
            values, tokens = logs.topk(most, dim=-1)
            for place, row in enumerate(rows.tolist()):
                names = self.tokenizer.convert_ids_to_tokens(tokens[place].tolist())
                pairs = zip(names, values[place].tolist(), strict=True)
                top = [{"token": _text(name), "logprob": round(value, 4)} for name, value in pairs]
                own = self.tokenizer.convert_ids_to_tokens(int(chosen[place]))
                value = round(float(logs[place, chosen[place]]), 4)
                told[row].append({"token": _text(own), "logprob": value, "top_logprobs": top})
        return chosen


def _text(token: str) -> str:
    """A token's text as an endpoint writes it, as far as its first blank is concerned."""
    return token.replace("Ġ", " ").replace("▁", " ")


class OwnDraws:
    """Samples as argmax of logits/T + Gumbel noise, drawn for each prompt by its own generator; T = 0 is greedy."""

    def __init__(self, keys: Sequence[str], temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(int(key[:15], 16)) for key in keys]
        self.temperature = temperature

    def __call__(
        self, logits: Float[Tensor, "running vocab"], rows: Int[Tensor, " running"]
    ) -> Int[Tensor, " running"]:
        """Draw a token of softmax(logits/T) for each row."""
        if not self.temperature:
            return logits.argmax(-1)
        own = [self.generators[row] for row in rows.tolist()]
        noise = torch.stack([torch.empty(logits.shape[1]).exponential_(generator=g) for g in own])
        scores = logits.float() / self.temperature - noise.to(logits.device).clamp(min=1e-30).log()
        return scores.argmax(-1)
