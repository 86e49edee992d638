"""A local model that answers meta-prompts like an endpoint does."""

from dataclasses import dataclass
from typing import Any

import torch

from lib.zoo.chat import prompt_ids


@dataclass
class LocalGenerator:
    """Sampled answers of a causal language model in its chat template."""

    model: Any
    tokenizer: Any

    @torch.inference_mode()
    def complete(
        self, prompt: str, *, count: int = 1, temperature: float = 1.0, max_tokens: int = 512, seed: int = 0
    ) -> list[str]:
        """`count` sampled answers to a prompt; `seed` makes them repeatable (torch's state outside is left alone)."""
        ids = torch.tensor([prompt_ids(self.tokenizer, prompt)], device=self.model.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=temperature, top_p=1.0, top_k=0,
                num_return_sequences=count, max_new_tokens=max_tokens,
            )  # fmt: skip
        return self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
