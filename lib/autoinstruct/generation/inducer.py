"""The inducer: a small language model fine-tuned to write the instruction that demonstrations follow.

One adapter (LoRA) with a token of its own a style: the style's vector stands before the demonstrations, and in training
it is the style of the human instruction to be written. The vectors are fixed and the adapter learns to read them, so
that training does not reach below the adapted layers. (The paper prompts a large model instead; see `meta`.)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from lib.autoinstruct.descent import descend
from lib.autoinstruct.generation.candidates import Candidate
from lib.autoinstruct.generation.styles import REQUESTS, style_of
from lib.autoinstruct.prompts import Demonstration
from lib.autoinstruct.shared_prefix import padded_left, padded_right

STYLES = tuple(REQUESTS)


@dataclass(frozen=True)
class InducerExample:
    """What the inducer learns from: demonstrations of a task, the instruction a human wrote, and its style."""

    demonstrations: tuple[Demonstration, ...]
    instruction: str
    style: str


def inducer_examples(tasks: Iterable[Any], *, shown: int = 3) -> list[InducerExample]:
    """One example a task: the first `shown` demonstrations, its human instruction, and the style that one has."""
    return [InducerExample(t.demonstrations[:shown], t.instruction, style_of(t.instruction)) for t in tasks]


class Inducer(nn.Module):
    """A causal language model with an adapter on its upper layers and one fixed vector a style."""

    style_vectors: Tensor

    def __init__(self, model: Any, tokenizer: Any, *, rank: int = 16, layers: int = 10) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__()
        total = model.config.num_hidden_layers
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            layers_to_transform=list(range(max(0, total - layers), total)), task_type="CAUSAL_LM",
        )  # fmt: skip
        self.language_model: Any = get_peft_model(model, config)
        for name, weight in self.language_model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()  # adapters below float32 barely move
        self.tokenizer = tokenizer
        weight = self.embedding.weight.detach().float()
        drawn = torch.randn(len(STYLES), weight.shape[1], generator=torch.Generator().manual_seed(0))
        self.register_buffer("style_vectors", drawn.to(weight.device) * weight.std())  # as large as a token's

    @property
    def embedding(self) -> Any:
        """The language model's own embedding of tokens."""
        return self.language_model.get_input_embeddings()

    def _context(self, demonstrations: Sequence[Demonstration]) -> list[int]:
        shown = "\n\n".join(f"Input: {demo.input}\nOutput: {demo.output}" for demo in demonstrations)
        return self.tokenizer(f"{shown}\n\nInstruction:", add_special_tokens=False).input_ids

    def _embed(self, ids: Int[Tensor, "rows tokens"], styles: Sequence[str]) -> Float[Tensor, "rows tokens+1 dim"]:
        """Embeddings with each row's style vector at its first position."""
        embedded = self.embedding(ids)
        picked = self.style_vectors[[STYLES.index(style) for style in styles]]
        return torch.cat([picked[:, None].to(embedded.dtype), embedded], dim=1)

    def loss(self, examples: Sequence[InducerExample]) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of the instructions' tokens, in nats."""
        contexts = [self._context(example.demonstrations) for example in examples]
        replies = [self._reply(example.instruction) for example in examples]
        device = self.style_vectors.device
        ids, padding = padded_right([c + r for c, r in zip(contexts, replies, strict=True)], device=device)
        scored = torch.zeros_like(padding)
        for row, (context, reply) in enumerate(zip(contexts, replies, strict=True)):
            scored[row, len(context) : len(context) + len(reply)] = True
        mask = torch.cat([torch.ones_like(padding[:, :1]), ~padding], dim=1).long()
        embeds = self._embed(ids, [example.style for example in examples])
        base = self.language_model.get_base_model()
        hidden = base.get_decoder()(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        # Position t of `hidden` predicts token t of `ids`: the style vector has shifted everything by one.
        logits = base.get_output_embeddings()(hidden[:, :-1][scored]).float()
        return nn.functional.cross_entropy(logits, ids[scored])

    def _reply(self, instruction: str) -> list[int]:
        return [*self.tokenizer(f" {instruction}", add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]

    @torch.inference_mode()
    def sample(
        self,
        requests: Sequence[tuple[Sequence[Demonstration], str]],
        *,
        temperature: float = 0.7,
        max_new_tokens: int = 60,
        batch_rows: int = 32,
        progress: bool = True,
    ) -> list[Candidate]:
        """One candidate for each (demonstrations, style), in order; reseed torch before the call to repeat it."""
        found: list[Candidate] = []
        starts = range(0, len(requests), batch_rows)
        for start in tqdm(starts, desc="induce", disable=not progress):
            batch = requests[start : start + batch_rows]
            styles = [style for _, style in batch]
            ids, padding = padded_left([self._context(demos) for demos, _ in batch], device=self.style_vectors.device)
            # The style vector goes before the padding's end: rotate it to where the row's text begins.
            embeds, mask = self._beginning(ids, padding, styles)
            out = self.language_model.generate(
                inputs_embeds=embeds, attention_mask=mask, do_sample=True, temperature=temperature, top_k=0,
                max_new_tokens=max_new_tokens, pad_token_id=self.tokenizer.eos_token_id,
            )  # fmt: skip
            texts = self.tokenizer.batch_decode(out, skip_special_tokens=True)
            found += [Candidate(text.strip(), "inducer", s) for text, s in zip(texts, styles, strict=True)]
        return found

    def _beginning(self, ids: Tensor, padding: Tensor, styles: Sequence[str]) -> tuple[Tensor, Tensor]:
        embeds = torch.cat([self.embedding(ids[:, :1]), self.embedding(ids)], dim=1)
        first = padding.sum(-1)  # of the longer rows: one more position on the left
        picked = self.style_vectors[[STYLES.index(style) for style in styles]].to(embeds.dtype)
        embeds[torch.arange(len(ids)), first] = picked
        mask = torch.cat([padding[:, :1], padding], dim=1).logical_not()
        mask[torch.arange(len(ids)), first] = True
        return embeds, mask.long()

    def save(self, path: Path) -> None:
        """Write the adapter and the style vectors to a file."""
        from safetensors.torch import save_file

        save_file({name: tensor.cpu().contiguous() for name, tensor in self._own().items()}, path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote; raises ValueError where it is of another shape."""
        from safetensors.torch import load_file

        kept, own = load_file(path), self._own()
        if kept.keys() != own.keys():
            raise ValueError(f"{path.name} is no adapter of this model, rank and layers")
        for name, tensor in kept.items():
            own[name].copy_(tensor)

    def _own(self) -> dict[str, Tensor]:
        """What is not the language model's, detached."""
        adapter = {name: weight.detach() for name, weight in self.named_parameters() if weight.requires_grad}
        return adapter | {"style_vectors": self.style_vectors}


def train_inducer(
    inducer: Inducer,
    examples: Sequence[InducerExample],
    *,
    epochs: int = 3,
    batch_size: int = 4,
    lr: float = 2e-3,
    progress: bool = True,
) -> list[float]:
    """Fine-tune with AdamW at a rate that falls linearly to zero; gives the loss of each step, in nats per token."""
    return descend(
        inducer, _batches(examples, epochs, batch_size), inducer.loss,
        steps=epochs * -(-len(examples) // batch_size), lr=lr, label="inducer", progress=progress,
    )  # fmt: skip


def _batches(examples: Sequence[InducerExample], epochs: int, size: int) -> Iterator[list[InducerExample]]:
    for _ in range(epochs):
        order = torch.randperm(len(examples)).tolist()
        for start in range(0, len(order), size):
            yield [examples[i] for i in order[start : start + size]]
