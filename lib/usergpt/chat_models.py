"""Chat models behind one call: a local transformers model, or any OpenAI-compatible endpoint.

`complete` gives one `Reply` a prompt and never raises for a single bad answer: what went wrong stands in its `fault`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from lib import TenfoldError
from lib.usergpt.reply_cache import key_of
from lib.zoo.endpoint import EndpointFailed, chat_completion


@dataclass(frozen=True)
class Reply:
    """Text of an answer, or the reason why there is none."""

    text: str = ""
    fault: str = ""


@runtime_checkable
class ChatModel(Protocol):
    """Anything that answers prompts; `name` identifies model and settings in a cache."""

    name: str

    def complete(self, prompts: Sequence[str], *, attempt: int = 0) -> list[Reply]:
        """One reply a prompt, in order; another attempt may answer differently."""
        ...


class LocalChatModel:
    """A transformers chat model that samples at the paper's temperature 0.4 (0: greedy), prompts in batches.

    Each prompt has its own random numbers: a reply does not hang on the other prompts of its batch, and two runs that
    ask the same get the same. `prefill` begins the answer, so that a small model finds the format. A prompt longer than
    the context is a fault.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        temperature: float = 0.4,
        max_new_tokens: int = 800,
        prefill: str = "** Output 1 **\n[domain]",
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.max_new_tokens, self.prefill = temperature, max_new_tokens, prefill
        self.batch_size, self.seed = batch_size, seed
        self.name = f"{model.config.name_or_path} T={temperature} n={max_new_tokens} {prefill!r} seed={seed}"
        self.new_tokens = 0

    def complete(self, prompts: Sequence[str], *, attempt: int = 0) -> list[Reply]:
        """One reply a prompt."""
        texts = [self._chat(prompt) for prompt in prompts]
        lengths = [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False).input_ids]
        room = self.model.config.max_position_embeddings - self.max_new_tokens
        replies = [Reply(fault=f"a prompt of {n} tokens does not fit") if n > room else Reply() for n in lengths]
        fitting = [i for i, n in enumerate(lengths) if n <= room]
        for start in range(0, len(fitting), self.batch_size):
            chosen = fitting[start : start + self.batch_size]
            for i, text in zip(chosen, self._generate([texts[i] for i in chosen], attempt), strict=True):
                replies[i] = Reply(self.prefill + text)
        return replies

    def _chat(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        chat = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return chat + self.prefill

    def _generate(self, texts: list[str], attempt: int) -> list[str]:
        import torch

        inputs = self.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        draws = [OwnDraws([key_of(self.seed, attempt, text) for text in texts], self.temperature)]
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, pad_token_id=self.tokenizer.pad_token_id,
                do_sample=False, temperature=None, top_p=None, top_k=None,
                logits_processor=draws if self.temperature > 0 else [],
            )  # fmt: skip
        new = output[:, inputs.input_ids.shape[1] :]
        self.new_tokens += int((new != self.tokenizer.pad_token_id).sum())
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)


class OwnDraws:
    """Logits processor that makes greedy decoding sample: argmax of logits/T + Gumbel noise, drawn for each prompt."""

    def __init__(self, keys: Sequence[str], temperature: float) -> None:
        import torch

        self.generators = [torch.Generator().manual_seed(int(key[:15], 16)) for key in keys]
        self.temperature = temperature

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores [batch, vocab] whose argmax is a sample of softmax(logits/T)."""
        import torch

        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators])
        return scores.float() / self.temperature - noise.to(scores.device).clamp(min=1e-30).log()


class EndpointChatModel:
    """A model behind `POST <url>/chat/completions`; its key is read from an environment variable, never stored.

    A time-out, a refusal for the moment or an answer that is no completion is asked again `retries` times, after
    `pause` seconds and then twice as long each time; then the reply carries the fault. Raises TenfoldError where the
    server refuses for good (401, 403, 404): going on would only fail for every conversation.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        temperature: float = 0.4,
        max_new_tokens: int = 800,
        timeout: float = 60.0,
        retries: int = 5,
        pause: float = 2.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise TenfoldError(f"{url!r} is no endpoint: give its address up to /v1, beginning with http.")
        self.url, self.model, self.key_variable = url.rstrip("/"), model, key_variable
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.timeout, self.retries, self.pause = timeout, retries, pause
        self.name = f"{model} at {self.url} T={temperature} n={max_new_tokens}"

    def complete(self, prompts: Sequence[str], *, attempt: int = 0) -> list[Reply]:
        """One reply a prompt."""
        return [self._ask(prompt) for prompt in prompts]

    def _ask(self, prompt: str) -> Reply:
        request = {
            "model": self.model, "temperature": self.temperature, "top_p": 1, "max_tokens": self.max_new_tokens,
            "messages": [{"role": "user", "content": prompt}],
        }  # fmt: skip
        key, patience = os.environ.get(self.key_variable), {"tries": self.retries + 1, "pause": self.pause}
        try:
            return Reply(chat_completion(self.url, request, key=key, seconds=self.timeout, **patience).texts[0])
        except EndpointFailed as error:
            if error.final:
                raise TenfoldError(
                    f"the endpoint {self.url} refuses ({error.reason}): check its address, the model {self.model!r} "
                    f"and ${self.key_variable}. What was answered so far is kept."
                ) from None
            return Reply(fault=f"endpoint: {error.reason}")
