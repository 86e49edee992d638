"""Speed of a SELM training step against trl's DPO step on the same pairs, and of sampling against `generate`.

Ratios are ours / peer in seconds, so smaller is better. All run on the real policy in 16-bit numbers, with adapters on
its top layers and on real questions. Where three responses are ranked, the third one is one of the pair in two of three
cases: it costs a row of the batch only in the third.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import datasets
import torch

from lib import preference, zoo
from lib.selm.configuration import SELMConfig
from lib.selm.trainer import SELMTrainer

LM, DATA = "smollm2-135m-instruct", "sharegpt"
STEP_GOAL, SHARED_GOAL, SAMPLING_GOAL = 1.35, 1.1, 1.0
RESPONSE_TOKENS, LAYERS = 20, 10
NEVER_SAID = "<empty_output>"  # a special token of the model that no answer holds


def cases(*, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the benchmarks: a step with y among the ranked and apart, prompts shared or not; sampling.

    `quick` is the smallest. Unit s: the caller times `ours` and `peer` in turn.
    """
    pairs = 1 if quick else 3
    yield step_case(pairs, own_y=range(0, pairs, 3))
    yield step_case(pairs, own_y=range(pairs))
    yield step_case(pairs, own_y=range(pairs), share_prompts=True)
    for prompts, k in [(2, 1)] if quick else [(8, 4), (32, 1)]:
        ours, peer = sampling(prompts, k, 4 if quick else RESPONSE_TOKENS)
        yield _case(f"sampling {prompts} x {k} responses", ours, peer, "transformers generate", SAMPLING_GOAL)


def step_case(pairs: int, *, own_y: Iterable[int], share_prompts: bool = False) -> dict[str, Any]:
    """Return a training step on so many pairs, of which those named in `own_y` have a third response of their own."""
    own = set(own_y)
    rows = [row if i in own else row | {"response_ids": row["chosen_ids"]} for i, row in enumerate(triples(pairs))]
    ours = training_step(SELMTrainer, rows, cls=SELMConfig, alpha=0.1, share_prompts=share_prompts)
    peer = training_step(preference.TokenDPOTrainer, rows)
    shared = ", prompts shared" if share_prompts else ""
    return _case(
        f"step of {pairs} pairs, {len(own)} with y apart{shared}",
        ours,
        peer,
        "trl DPOTrainer",
        SHARED_GOAL if share_prompts else STEP_GOAL,
    )


@cache
def questions(limit: int) -> tuple[preference.Question, ...]:
    """Return real questions."""
    _, tokenizer = zoo.load_lm(LM)
    records = zoo.load_dataset(DATA, split="train")
    return tuple(preference.questions(records, tokenizer, limit=limit, max_tokens=56))


def triples(pairs: int) -> list[dict[str, list[int]]]:
    """Return token ids of pairs with a third response; responses are pieces of real answers."""
    _, tokenizer = zoo.load_lm(LM)
    rows = []
    for question in questions(64):
        said = tokenizer(question.answer).input_ids
        if len(said) >= 3 * RESPONSE_TOKENS:
            parts = [said[i * RESPONSE_TOKENS : (i + 1) * RESPONSE_TOKENS] for i in range(3)]
            names = ("chosen_ids", "rejected_ids", "response_ids")
            rows.append({"prompt_ids": list(question.tokens), **dict(zip(names, parts, strict=True))})
    return rows[:pairs]


def training_step(
    trainer: type[preference.TokenDPOTrainer], rows: list[dict[str, list[int]]], **options: Any
) -> Callable[[], None]:
    """Return a call that takes one optimiser step of DPO or SELM on all rows, reference included."""
    model, tokenizer = zoo.load_lm(LM, dtype="bfloat16")
    policy = preference.with_lora(model, layers=min(LAYERS, model.config.num_hidden_layers), seed=0)
    args = preference.config(
        tempfile.mkdtemp(), beta=0.1, learning_rate=1e-4, per_device_train_batch_size=len(rows), max_steps=1, **options
    )
    data = datasets.Dataset.from_list(rows)
    runner = trainer(policy, args=args, train_dataset=data, processing_class=tokenizer)
    optimizer = runner.create_optimizer()
    batch = runner._prepare_inputs(next(iter(runner.get_train_dataloader())))
    policy.train()

    def step() -> None:
        policy.zero_grad(set_to_none=True)
        runner.compute_loss(policy, dict(batch)).backward()
        optimizer.step()

    return step


def sampling(prompts: int, k: int, tokens: int) -> tuple[Callable, Callable]:
    """Return our sampler and `generate` on the same questions, as many rows in one batch, all tokens spoken."""
    model, tokenizer = zoo.load_lm(LM, dtype="bfloat16")
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(NEVER_SAID)  # both say as many tokens
    asked = [q.tokens for q in questions(64)[:prompts]]
    tokenizer.padding_side = "left"
    inputs = tokenizer.pad({"input_ids": [list(ids) for ids in asked]}, return_tensors="pt")

    def ours() -> None:
        preference.sample(model, tokenizer, asked, k, max_new_tokens=tokens, batch_size=prompts * k, progress=False)

    @torch.inference_mode()
    def peer() -> None:
        model.generate(**inputs, do_sample=True, top_k=0, num_return_sequences=k, max_new_tokens=tokens)

    return ours, peer


def _case(name: str, ours: Callable, peer: Callable, peer_name: str, goal: float) -> dict[str, Any]:
    return {"name": name, "unit": "s", "ours": ours, "peer": peer, "peer_name": peer_name, "goal": goal}
