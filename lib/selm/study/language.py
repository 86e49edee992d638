"""A language model as a policy over a pool of its own responses: exact expectations in place of single draws.

Over the k responses that the initial model π_0 drew to a question, a model π has the law
softmax_j(log π(y_j|x) − log π_0(y_j|x)): self-normalised importance weights. Draws, pairs and losses are those of the
log-linear policy (`lib.preference.pool`); what is trained are adapters on the top layers. The layers below are frozen,
so what they say of a prompt and of each response is computed once, and a prompt is read once for all of its responses.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.core.training import evaluating, train
from lib.preference.packing import lay_out, stacked
from lib.preference.pool import Loss, PoolLogProbs, PoolPairs, draw_pairs, log_probs_of, portions_and_draws

Ids = Sequence[int]


class PooledModel:
    """A policy with adapters on its top `layers` layers, over k responses to each question."""

    def __init__(
        self, policy: Any, prompts: Sequence[Ids], responses: Sequence[Sequence[Ids]], *, layers: int, batch: int = 8
    ) -> None:
        self.policy, self.batch = policy, batch
        self.decoder = policy.get_base_model().get_decoder()
        self.head = policy.get_base_model().get_output_embeddings()
        self.depth = self.decoder.config.num_hidden_layers - layers
        self.prompts = [tuple(ids) for ids in prompts]
        self.segments = [[[p[-1], *said] for said in group] for p, group in zip(self.prompts, responses, strict=True)]
        self.k = len(responses[0])
        self.states: list[list[Tensor]] = []  # of each question: its prompt's and each segment's, below the adapters
        with torch.no_grad(), evaluating(policy), self._layers(slice(None, self.depth), normed=False):
            for rows in torch.arange(len(prompts)).split(batch):
                laid = [lay_out(self.segments[i], self.prompts[i]) for i in rows.tolist()]
                inputs = self._inputs(laid)
                hidden = self.decoder(input_ids=inputs.pop("input_ids"), use_cache=False, **inputs).last_hidden_state
                for states, (ids, _, begins) in zip(hidden, laid, strict=True):
                    self.states.append([s.clone() for s in states[: len(ids)].tensor_split(begins)])
        with torch.no_grad(), policy.disable_adapter():
            self.initial = self.log_probs(range(len(prompts)))

    def _inputs(self, laid: list[Any]) -> dict[str, Tensor]:
        inputs = stacked(laid, 0)
        return {
            name: inputs[name].to(self.head.weight.device) for name in ("input_ids", "attention_mask", "position_ids")
        }

    @contextmanager
    def _layers(self, some: slice, *, normed: bool) -> Iterator[None]:
        """Let the decoder be some of its layers."""
        whole, norm = self.decoder.layers, self.decoder.norm
        try:
            self.decoder.layers, self.decoder.config.num_hidden_layers = whole[some], len(whole[some])
            self.decoder.norm = norm if normed else torch.nn.Identity()
            yield
        finally:
            self.decoder.layers, self.decoder.norm = whole, norm
            self.decoder.config.num_hidden_layers = len(whole)

    def of(self, questions: Sequence[int], asked: Bool[Tensor, "questions k"]) -> Float[Tensor, "questions k"]:
        """Return log π(y|x) of the responses that are asked about (0 for the others), with its gradient."""
        places = [row.nonzero().squeeze(1).tolist() for row in asked]
        laid = [
            lay_out([self.segments[q][j] for j in some], self.prompts[q])
            for q, some in zip(questions, places, strict=True)
        ]
        states = [
            torch.cat([self.states[q][0], *(self.states[q][1 + j] for j in some)])
            for q, some in zip(questions, places, strict=True)
        ]
        inputs, labels = self._inputs(laid), stacked(laid, 0)["labels"][:, 1:]
        del inputs["input_ids"]
        with self._layers(slice(self.depth, None), normed=True):
            embeds = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
            hidden = self.decoder(inputs_embeds=embeds, use_cache=False, **inputs).last_hidden_state
        rows, columns = (labels != -100).nonzero(as_tuple=True)
        logits = self.head(hidden[rows, columns]).float()
        said = -torch.nn.functional.cross_entropy(logits, labels[rows, columns].to(logits.device), reduction="none")
        owner = torch.tensor([laid[r][1][c + 1] - 1 for r, c in zip(rows.tolist(), columns.tolist(), strict=True)])
        place = torch.tensor([places[r][o] for r, o in zip(rows.tolist(), owner.tolist(), strict=True)])
        flat = (rows * self.k + place).to(said.device)
        return said.new_zeros(len(questions) * self.k).index_add(0, flat, said).view(-1, self.k)

    @torch.no_grad()
    def log_probs(self, questions: Sequence[int]) -> Float[Tensor, "questions k"]:
        """Return log π(y|x) of all responses to some questions, in nats."""
        every, parts = torch.ones(self.batch, self.k, dtype=torch.bool), []
        with evaluating(self.policy):
            for start in range(0, len(questions), self.batch):
                some = list(questions[start : start + self.batch])
                parts.append(self.of(some, every[: len(some)]).double().cpu())
        return torch.cat(parts)

    def law(self, questions: Sequence[int], log_probs: Float[Tensor, "questions k"]) -> Float[Tensor, "questions k"]:
        """Return the log of the law over the pool that goes with log-probabilities."""
        return (log_probs - self.initial[list(questions)]).log_softmax(-1)


@dataclass
class LanguageRun:
    """What a run came to: log π of held-out responses after the last round; its loss on its own pairs, a round each."""

    held_out: Float[Tensor, "questions k"]
    own_loss: list[float]


@dataclass(frozen=True, kw_only=True)
class LanguagePlan:
    """Rounds of draw, pair, train on the first `training` questions; the others are held out."""

    training: int
    rounds: int
    draws: int
    learning_rate: float
    epochs: int = 1


def online_language(
    model: PooledModel,
    scores: Float[Tensor, "questions k"],
    loss: Loss,
    dpo: Loss,
    *,
    plan: LanguagePlan,
    seed: int,
    greedy: bool = False,
) -> LanguageRun:
    """Run the rounds from adapters that say nothing yet (`fresh_adapters`), each with the policy before as reference.

    Runs of a seed are paired. `dpo` is the plain preference loss: the run's loss on its own pairs tells whether it has
    learned them.
    """
    own_loss: list[float] = []
    for portion, uniforms in portions_and_draws(plan.training, plan.rounds, plan.draws, seed):
        questions = portion.tolist()
        first = not own_loss
        before = model.initial[questions] if first else model.log_probs(questions)
        # a policy that has collapsed later on has nothing to compare, and stays
        pairs = draw_pairs(model.law(questions, before), scores[portion], uniforms, greedy=greedy, refuse=first)
        reference = log_probs_of(before, pairs)
        _train(model, questions, pairs, reference, loss, plan)
        after = log_probs_of(model.log_probs(questions), pairs)
        own_loss.append(float(dpo(after, reference)[pairs.kept].mean()) if pairs.kept.any() else math.log(2))
    return LanguageRun(model.log_probs(range(plan.training, len(scores))), own_loss)


def divergence(law: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows"]:
    """Return KL(initial law ‖ law) in nats: the initial model's law over its own draws is uniform."""
    return -(law * law.shape[-1]).log().mean(-1)


def sharpened(log_probs: Float[Tensor, "questions k"], nats: float) -> Float[Tensor, "questions k"]:
    """Return the law of the initial model raised to a power, so many nats from it on average, at most to the first."""
    low, high = 0.0, 1.0
    for _ in range(50):
        power = (low + high) / 2
        law = (power * log_probs).softmax(-1)
        low, high = (power, high) if float(divergence(law).mean()) < nats else (low, power)
    return law


def _train(
    model: PooledModel, questions: list[int], pairs: PoolPairs, reference: PoolLogProbs, loss: Loss, plan: LanguagePlan
) -> None:
    """Train the adapters on the pairs that are no ties; only the responses that a pair needs are run."""
    needed = torch.zeros(len(questions), model.k, dtype=torch.bool)
    for places in (pairs.chosen, pairs.rejected, pairs.third):
        needed.scatter_(1, places[:, None], True)
    batches = [rows for _ in range(plan.epochs) for rows in pairs.kept.nonzero().squeeze(1).split(model.batch)]

    def batch_loss(rows: Tensor) -> Tensor:
        of = model.of([questions[i] for i in rows.tolist()], needed[rows]).double().cpu()
        places = (pairs.chosen[rows], pairs.rejected[rows], pairs.third[rows], pairs.kept[rows])
        policy = log_probs_of(of, PoolPairs(torch.arange(len(rows)), *places))
        known = (reference.chosen[rows], reference.rejected[rows], reference.third[rows], reference.all[rows])
        return loss(policy, PoolLogProbs(*known)).mean()

    if len(pairs.kept.nonzero()):
        options = {"learning_rate": plan.learning_rate, "progress": False}
        train(model.policy, batches, batch_loss, steps=len(batches), **options)


def fresh_adapters(adapters: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return adapters that start as the identity, their first factor drawn anew (uniform in ±1/√width)."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, weight in sorted(adapters.items()):
        drawn = (2 * torch.rand(weight.shape, generator=generator) - 1) / weight.shape[-1] ** 0.5
        made[name] = drawn.to(weight.dtype) if "lora_A" in name else torch.zeros_like(weight)
    return made
