"""The inducer: a small language model fine-tuned to write the instruction that demonstrations follow.

It stands in for the large model that the paper prompts (`lib.autoinstruct.generation`). One adapter (LoRA) with a token
of its own a style: the style's vector stands before the demonstrations, and in training it is the style of the human
instruction to be written. The vectors are fixed and the adapter learns to read them, so that training does not reach
below the adapted layers.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from lib.autoinstruct.candidates import Candidate
from lib.autoinstruct.generation import REQUESTS
from lib.autoinstruct.tasks import Demonstration, Task
from lib.core.scoring import padded
from lib.core.training import train

STYLES = tuple(REQUESTS)
STEPS = re.compile(
    r"\b(step \d|steps)\b|(^|[.!?]\s+)(first|second|next|then|finally)\b|^\s*\d[.)]", re.IGNORECASE | re.MULTILINE
)
EXAMPLE = re.compile(r"\b(for example|e\.g\.|for instance|example:)", re.IGNORECASE)
SENTENCE = re.compile(r"[.!?](\s|$)")


def style_of(instruction: str) -> str:
    """Tell the style of an instruction by its form: with an example, in steps, one sentence, else one paragraph."""
    if EXAMPLE.search(instruction):
        return "use-example"
    if STEPS.search(instruction):
        return "step-by-step"
    return "one-sentence" if len(SENTENCE.findall(instruction.strip())) <= 1 else "one-paragraph"


@dataclass(frozen=True)
class InducerExample:
    """What the inducer learns from: demonstrations of a task, the instruction a human wrote, and its style."""

    demonstrations: tuple[Demonstration, ...]
    instruction: str
    style: str


def inducer_examples(tasks: Iterable[Task], *, shown: int = 3) -> list[InducerExample]:
    """Make one example a task: the first `shown` demonstrations, its human instruction, and the style that one has."""
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
        weight = self.language_model.get_input_embeddings().weight.detach().float()
        drawn = torch.randn(len(STYLES), weight.shape[1], generator=torch.Generator().manual_seed(0))
        self.register_buffer("style_vectors", drawn.to(weight.device) * weight.std())  # as large as a token's

    def _encoded(self, demonstrations: Sequence[Demonstration]) -> list[int]:
        shown = "\n\n".join(f"Input: {demo.input}\nOutput: {demo.output}" for demo in demonstrations)
        return self.tokenizer(f"{shown}\n\nInstruction:", add_special_tokens=False).input_ids

    def _embedded(
        self, ids: Int[Tensor, "rows tokens"], present: Bool[Tensor, "rows tokens"], styles: Sequence[str]
    ) -> dict[str, Tensor]:
        """Embeddings and mask [rows, tokens + 1, …]: each row's style vector stands where its text begins."""
        embedding = self.language_model.get_input_embeddings()
        embeds, mask = (
            torch.cat([embedding(ids[:, :1]), embedding(ids)], dim=1),
            torch.cat([present[:, :1], present], 1),
        )
        rows, first = torch.arange(len(ids)), present.long().argmax(1)
        embeds[rows, first] = self.style_vectors[[STYLES.index(style) for style in styles]].to(embeds.dtype)
        mask[rows, first] = True
        return {"inputs_embeds": embeds, "attention_mask": mask.long()}

    def loss(self, examples: Sequence[InducerExample]) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of the instructions' tokens, in nats."""
        contexts = [self._encoded(example.demonstrations) for example in examples]
        replies = [
            [*self.tokenizer(f" {e.instruction}", add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
            for e in examples
        ]
        rows = [context + reply for context, reply in zip(contexts, replies, strict=True)]
        ids, present = padded(rows, side="right", device=self.style_vectors.device)
        starts = torch.tensor([len(context) for context in contexts], device=ids.device)[:, None]
        scored = present & (torch.arange(ids.shape[1], device=ids.device) >= starts)
        inputs = self._embedded(ids, present, [example.style for example in examples])
        base = self.language_model.get_base_model()
        hidden = base.get_decoder()(**inputs, use_cache=False).last_hidden_state
        # Position t of `hidden` predicts token t of `ids`: the style vector has shifted everything by one.
        logits = base.get_output_embeddings()(hidden[:, :-1][scored]).float()
        return nn.functional.cross_entropy(logits, ids[scored])

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
        candidates: list[Candidate] = []
        for start in tqdm(range(0, len(requests), batch_rows), desc="induce", disable=not progress):
            batch = requests[start : start + batch_rows]
            contexts = [self._encoded(demonstrations) for demonstrations, _ in batch]
            ids, present = padded(contexts, side="left", device=self.style_vectors.device)
            out = self.language_model.generate(
                **self._embedded(ids, present, [style for _, style in batch]), do_sample=True, temperature=temperature,
                top_k=0, max_new_tokens=max_new_tokens, pad_token_id=self.tokenizer.eos_token_id,
            )  # fmt: skip
            texts = self.tokenizer.batch_decode(out, skip_special_tokens=True)
            candidates += [Candidate(t.strip(), "inducer", style) for t, (_, style) in zip(texts, batch, strict=True)]
        return candidates

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
    return train(
        inducer, _batches(examples, epochs, batch_size), inducer.loss,
        steps=epochs * -(-len(examples) // batch_size), learning_rate=lr, label="inducer", progress=progress,
    )  # fmt: skip


def _batches(examples: Sequence[InducerExample], epochs: int, size: int) -> Iterator[list[InducerExample]]:
    for _ in range(epochs):
        order = torch.randperm(len(examples)).tolist()
        for start in range(0, len(order), size):
            yield [examples[i] for i in order[start : start + size]]


def build(folder: Path, *, model: Any, tokenizer: Any, tasks: Sequence[Task], epochs: int) -> None:
    """Train an inducer on tasks, from a copy of a language model, and write it into a folder with its losses."""
    inducer = Inducer(deepcopy(model), tokenizer)
    losses = train_inducer(inducer, inducer_examples(tasks), epochs=epochs)
    inducer.save(folder / "inducer.safetensors")
    pd.DataFrame({"loss": losses}).to_csv(folder / "losses.csv", index=False)


def load(folder: Path, model: Any, tokenizer: Any) -> tuple[Inducer, np.ndarray]:
    """Read what `build` wrote: the inducer on a copy of the language model, and the loss of each step."""
    inducer = Inducer(deepcopy(model), tokenizer)
    inducer.load(folder / "inducer.safetensors")
    return inducer.eval(), pd.read_csv(folder / "losses.csv")["loss"].to_numpy()
