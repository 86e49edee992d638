"""How surprised a model is by real answers: what compression costs.

A document is a prompt and its answer; only the answer's tokens are scored. Sums and counts come back per document, so
that an interval over documents can be made from them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from lib.core.scoring import ScoredBatch, by_length, log_probs, padded, scored_states
from lib.zoo.dialogues import exchanges, prompt_ids


@dataclass(frozen=True)
class Document:
    """Token ids and which of them are scored (the first token cannot be: nothing comes before it)."""

    tokens: Int[Tensor, " tokens"]
    scored: Bool[Tensor, " tokens"]


@dataclass(frozen=True)
class DocumentScores:
    """Summed negative log-likelihood in nats and number of scored tokens, per document."""

    nll: Float[Tensor, " documents"]
    tokens: Int[Tensor, " documents"]

    @property
    def perplexity(self) -> float:
        """Perplexity over all scored tokens."""
        return float((self.nll.sum() / self.tokens.sum()).exp())


def document_nll(
    model: nn.Module, documents: Sequence[Document], *, batch_size: int = 8, progress: bool = True
) -> DocumentScores:
    """Score every document once, in batches of similar length, in float32.

    Raises ValueError where there is no document, or one without a scored token.
    """
    if not documents or any(not document.scored[1:].any() for document in documents):
        raise ValueError("every document needs at least one scored token after its first")
    nll = torch.zeros(len(documents), dtype=torch.float64)
    counts = torch.tensor([int(document.scored[1:].sum()) for document in documents])
    batches = by_length([len(document.tokens) for document in documents], rows=batch_size)
    for chosen in tqdm(batches, desc="perplexity", unit="batch", disable=not progress, leave=False):
        for index, values in zip(chosen, token_log_likelihoods(model, [documents[i] for i in chosen]), strict=True):
            nll[index] = -values.double().sum()
    return DocumentScores(nll=nll.float(), tokens=counts)


@torch.inference_mode()
def token_log_likelihoods(model: nn.Module, documents: Sequence[Document]) -> list[Float[Tensor, " scored"]]:
    """Return log p of each document's scored tokens given all before them, in nats, as one batch."""
    device = next(model.parameters()).device
    ids, present = padded([document.tokens.tolist() for document in documents], side="right", device=device)
    counted = padded([document.scored.tolist() for document in documents], side="right", device=device)[0].bool()
    counted[:, 0] = False
    batch = ScoredBatch(ids, present, counted.roll(-1, dims=1))
    values = log_probs(model, scored_states(model, batch), batch.targets)
    return list(values.cpu().split(batch.scored.sum(-1).tolist()))


def mean_loss(model: nn.Module, batches: Iterable[Int[Tensor, "_ _"]]) -> float:
    """Return the loss of rows of plain text, all tokens but the first of each row, in nats per token."""
    rows = [row.cpu() for batch in batches for row in batch]
    documents = [Document(row, torch.ones(len(row), dtype=torch.bool)) for row in rows]
    scores = document_nll(model, documents, progress=False)
    return float(scores.nll.double().sum() / scores.tokens.sum())


def answer_documents(
    records: Iterable[Mapping[str, Any]], tokenizer: Any, *, limit: int, max_tokens: int = 512, min_answer: int = 16
) -> list[Document]:
    """Make documents of the first question and answer of chat records `{conversations: [{from, value}]}`.

    The question goes through the tokenizer's chat template, the answer follows as the assistant's turn and is what is
    scored; documents are cut at `max_tokens`, and answers of fewer than `min_answer` tokens left out.
    Raises ValueError where no record is usable.
    """
    documents: list[Document] = []
    for question, answer in exchanges(records):
        context = prompt_ids(tokenizer, question)
        reply = tokenizer(answer, add_special_tokens=False).input_ids[: max(max_tokens - len(context), 0)]
        if len(reply) < min_answer:
            continue
        tokens = torch.tensor(context + reply)
        documents.append(Document(tokens=tokens, scored=torch.arange(len(tokens)) >= len(context)))
        if len(documents) == limit:
            break
    if not documents:
        raise ValueError("no record holds a question with an answer long enough: raise max_tokens or lower min_answer")
    return documents
