"""A local model that answers meta-prompts like an endpoint does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lib.autoinstruct.shared_prefix import padded_left
from lib.zoo.chat import prompt_ids


@dataclass
class LocalGenerator:
    """Sampled answers of a causal language model in its chat template."""

    model: Any
    tokenizer: Any

    def complete(
        self,
        prompt: str,
        *,
        count: int = 1,
        temperature: float = 1.0,
        max_tokens: int = 512,
        seed: int = 0,
        system: str | None = None,
    ) -> list[str]:
        """`count` sampled answers to a prompt; `seed` makes them repeatable (torch's state outside is left alone)."""
        options = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed, "system": system}
        return self.complete_all([prompt], count=count, **options)[0]

    @torch.inference_mode()
    def complete_all(
        self,
        prompts: Sequence[str],
        *,
        count: int = 1,
        temperature: float = 1.0,
        max_tokens: int = 512,
        seed: int = 0,
        system: str | None = None,
        batch_rows: int = 48,
    ) -> list[list[str]]:
        """`count` sampled answers to each of many prompts, at most `batch_rows` answers at once."""
        found: list[str] = []
        each = max(1, batch_rows // count)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for start in range(0, len(prompts), each):
                part = [prompt_ids(self.tokenizer, prompt, system=system) for prompt in prompts[start : start + each]]
                ids, padding = padded_left(part, device=self.model.device)
                out = self.model.generate(
                    ids, attention_mask=(~padding).long(), do_sample=True, temperature=temperature, top_p=1.0, top_k=0,
                    num_return_sequences=count, max_new_tokens=max_tokens, pad_token_id=self.tokenizer.eos_token_id,
                )  # fmt: skip
                found += self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        return [found[i : i + count] for i in range(0, len(found), count)]
