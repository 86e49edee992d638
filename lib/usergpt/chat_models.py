"""A local transformers model that answers prompts as the chat annotator asks for it; for an endpoint: `ChatClient`."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lib.core.chat import ChatFailed, Decoding, Messages, Reply
from lib.core.store import key_of


@runtime_checkable
class ChatModel(Protocol):
    """Anything that answers many prompts at once: `lib.core.chat.ChatClient`, a `LocalChatModel`, or your own."""

    model: str

    def complete_many(
        self, questions: Sequence[Messages], decoding: Decoding | None = None, *, attempt: int = 0
    ) -> Sequence[Reply | ChatFailed]:
        """Reply to each, in order, with the failure in its place where there is none; another attempt may differ."""
        ...


class LocalChatModel:
    """A transformers chat model that samples at the paper's temperature 0.4 (0: greedy), prompts in batches.

    Each prompt has its own random numbers: a reply does not hang on the other prompts of its batch, and two runs that
    ask the same get the same. `prefill` begins the answer, so that a small model finds the format. A prompt longer than
    the context is a failure. `model` names the network and its settings.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        temperature: float = 0.4,
        max_new_tokens: int = 800,
        prefill: str = "** Output 1 **\n[domain]",
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.temperature, self.max_new_tokens, self.prefill = temperature, max_new_tokens, prefill
        self.batch_size, self.seed = batch_size, seed
        self.model = f"{network.config.name_or_path} T={temperature} n={max_new_tokens} {prefill!r} seed={seed}"

    def complete_many(
        self, questions: Sequence[str], decoding: Decoding | None = None, *, attempt: int = 0
    ) -> list[Reply | ChatFailed]:
        """Reply to each prompt as the model was set up: `decoding` of one's own is refused with ValueError."""
        if decoding is not None:
            raise ValueError("a LocalChatModel keeps the settings that it was made with: make another one")
        texts = [self._chat(question) for question in questions]
        lengths = [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False).input_ids]
        room = self.network.config.max_position_embeddings - self.max_new_tokens
        replies: dict[int, Reply | ChatFailed] = {
            i: ChatFailed(self.model, f"a prompt of {n} tokens does not fit") for i, n in enumerate(lengths) if n > room
        }
        fitting = [i for i, n in enumerate(lengths) if n <= room]
        for start in range(0, len(fitting), self.batch_size):
            chosen = fitting[start : start + self.batch_size]
            for i, text in zip(chosen, self._generate([texts[i] for i in chosen], attempt), strict=True):
                replies[i] = Reply((self.prefill + text,))
        return [replies[i] for i in range(len(texts))]

    def _chat(self, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + self.prefill

    @torch.inference_mode()
    def _generate(self, texts: list[str], attempt: int) -> list[str]:
        inputs = self.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        inputs = inputs.to(self.network.device)
        draws = [OwnDraws([key_of(self.seed, attempt, text) for text in texts], self.temperature)]
        output = self.network.generate(
            **inputs, max_new_tokens=self.max_new_tokens, pad_token_id=self.tokenizer.pad_token_id,
            do_sample=False, temperature=None, top_p=None, top_k=None,
            logits_processor=draws if self.temperature > 0 else [],
        )  # fmt: skip
        return self.tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


class OwnDraws:
    """Logits processor that makes greedy decoding sample: argmax of logits/T + Gumbel noise, drawn for each prompt."""

    def __init__(self, keys: Sequence[str], temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(int(key[:15], 16)) for key in keys]
        self.temperature = temperature

    def __call__(
        self, input_ids: Int[Tensor, "prompts read"] | None, scores: Float[Tensor, "prompts vocab"]
    ) -> Float[Tensor, "prompts vocab"]:
        """Give scores whose argmax is a sample of softmax(logits/T)."""
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators])
        return scores.float() / self.temperature - noise.to(scores.device).clamp(min=1e-30).log()
