"""How surprised a model is by real answers: the measure that arXiv:2410.03111's compression is judged by here.

A document is a prompt and its answer; only the answer's tokens are scored. Sums and counts come back per document, so
that an interval over documents can be made from them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from lib.zoo.chat import exchanges, prompt_ids

LOGIT_ROWS = 1024


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
    order = sorted(range(len(documents)), key=lambda index: len(documents[index].tokens))
    nll = torch.zeros(len(documents), dtype=torch.float64)
    counts = torch.tensor([int(document.scored[1:].sum()) for document in documents])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for chosen in tqdm(batches, desc="perplexity", unit="batch", disable=not progress, leave=False):
        for index, values in zip(chosen, token_log_likelihoods(model, [documents[i] for i in chosen]), strict=True):
            nll[index] = -values.double().sum()
    return DocumentScores(nll=nll.float(), tokens=counts)


@torch.inference_mode()
def token_log_likelihoods(model: nn.Module, documents: Sequence[Document]) -> list[Float[Tensor, " scored"]]:
    """Return log p of each document's scored tokens given all before them, in nats, as one batch.

    Only the scored positions go through the vocabulary head, a part at a time.
    """
    network, device = cast(Any, model), next(model.parameters()).device
    lengths = torch.tensor([len(document.tokens) for document in documents])
    tokens = nn.utils.rnn.pad_sequence([document.tokens for document in documents], batch_first=True).to(device)
    scored = nn.utils.rnn.pad_sequence([document.scored for document in documents], batch_first=True).to(device)
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(device)
    # Without padding no mask is passed, which lets attention take its causal kernel.
    padded = {} if mask.all() else {"attention_mask": mask.long()}
    hidden = network.get_decoder()(input_ids=tokens, use_cache=False, **padded).last_hidden_state[:, :-1]
    keep, targets = scored[:, 1:], tokens[:, 1:]
    rows, wanted = hidden[keep], targets[keep]
    found = []
    for part, target in zip(rows.split(LOGIT_ROWS), wanted.split(LOGIT_ROWS), strict=True):
        logits = network.get_output_embeddings()(part).float()
        found.append(logits.gather(-1, target[:, None]).squeeze(-1) - logits.logsumexp(-1))
    return list(torch.cat(found).cpu().split(keep.sum(-1).tolist()))


def answer_documents(
    records: Iterable[Mapping[str, Any]], tokenizer: Any, *, limit: int, max_tokens: int = 512, min_answer: int = 16
) -> list[Document]:
    """Make documents of the first question and answer of chat records `{conversations: [{from, value}]}`.

    The question goes through the tokenizer's chat template, the answer follows as the assistant's turn and is what is
    scored; documents are cut at `max_tokens`, and answers of fewer than `min_answer` tokens left out.
    Raises ValueError where no record is usable.
    """
    found: list[Document] = []
    for question, answer in exchanges(records):
        context = prompt_ids(tokenizer, question)
        reply = tokenizer(answer, add_special_tokens=False).input_ids[: max(max_tokens - len(context), 0)]
        if len(reply) < min_answer:
            continue
        tokens = torch.tensor(context + reply)
        found.append(Document(tokens=tokens, scored=torch.arange(len(tokens)) >= len(context)))
        if len(found) == limit:
            break
    if not found:
        raise ValueError("no record holds a question with an answer long enough: raise max_tokens or lower min_answer")
    return found
