"""A generative judge: the policy itself, fine-tuned to say a grade after an evaluation prompt (EFT data).

M_eval of arXiv:2407.02119. The score is the expected grade under the judge's law over the grade tokens, so that ties
are rare; the grade that it would say is kept too.
Deviation: the judge gives its grade without a rationale before it (no rationales are at hand, and they cost decoding).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lib.core.scoring import by_length, padded
from lib.core.training import evaluating
from lib.preference.judges import Judge
from lib.zoo.dialogues import prompt_ids

LOWEST, HIGHEST = 1, 5
GRADES = tuple(range(LOWEST, HIGHEST + 1))


@dataclass(frozen=True)
class Criterion:
    """One thing that responses are judged by."""

    name: str
    description: str


CLOSENESS = Criterion(
    "substance",
    "the response says what a knowledgeable answer to the request would say, and not just the request again",
)


@dataclass(frozen=True)
class Judgement:
    """One tuple of evaluator fine-tuning data: (prompt, response, criterion, score)."""

    prompt: str
    response: str
    criterion: Criterion
    score: int

    def __post_init__(self) -> None:
        if not LOWEST <= self.score <= HIGHEST:
            raise ValueError(f"a judgement has score {self.score}: use whole points from {LOWEST} to {HIGHEST}")


def evaluation_prompt(prompt: str, response: str, criterion: Criterion = CLOSENESS) -> str:
    """Return text that asks for a score of a response from 1 to 5 by a criterion."""
    return (
        f"Grade a response from {LOWEST} (useless) to {HIGHEST} (excellent). Criterion: {criterion.description}.\n\n"
        f"Request:\n{prompt}\n\nResponse:\n{response}\n\nGrade:"
    )


def evaluation_ids(tokenizer: Any, prompt: str, response: str, criterion: Criterion = CLOSENESS) -> list[int]:
    """Return token ids of the evaluation prompt in the tokenizer's chat template, up to where the grade begins."""
    return prompt_ids(tokenizer, evaluation_prompt(prompt, response, criterion))


def to_points(scores: Float[Tensor, " labels"], *, spread: Float[Tensor, " others"] | None = None) -> list[int]:
    """Return whole points 1 to 5 of real scores: equally frequent classes of `spread` (of the scores where None)."""
    known = scores if spread is None else spread
    edges = known.float().quantile(torch.linspace(0, 1, len(GRADES) + 1)[1:-1])
    return (torch.bucketize(scores.float(), edges) + LOWEST).tolist()


@dataclass(frozen=True)
class GenerativePlan:
    """How a generative judge is fine-tuned."""

    epochs: int = 3
    batch_size: int = 8
    learning_rate: float = 1e-3
    seed: int = 0


class GenerativeJudge(Judge):
    """A language model that grades (prompt, response) by a criterion."""

    def __init__(self, model: Any, tokenizer: Any, *, criterion: Criterion = CLOSENESS, batch_size: int = 16) -> None:
        self.model, self.tokenizer, self.criterion, self.batch_size = model, tokenizer, criterion, batch_size
        self.identity = "generative judge"
        self.grade_tokens = _grade_tokens(tokenizer)
        self.padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id  # any token: it is masked

    def fit(self, judgements: Sequence[Judgement], plan: GenerativePlan | None = None, *, folder: str) -> float:
        """Fine-tune the model's trainable weights (an adapter, say); return the last epoch's loss in nats.

        `folder` takes the trainer's files. Raises ValueError where there is no judgement or nothing to train.
        """
        plan = GenerativePlan() if plan is None else plan
        if not judgements:
            raise ValueError("there is no judgement to learn from: ask the expert first")
        if not any(p.requires_grad for p in self.model.parameters()):
            raise ValueError("no weight of the judge is trainable: add an adapter, or let some weights take a gradient")
        rows = [
            {"ids": evaluation_ids(self.tokenizer, j.prompt, j.response, j.criterion), "grade": j.score - LOWEST}
            for j in judgements
        ]
        trainer = _trainer(self, rows, plan, folder)
        was_training = self.model.training
        trainer.train()
        self.model.train(was_training)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return float(losses[-1])

    @torch.inference_mode()
    def law(
        self, prompts: Sequence[str], responses: Sequence[str], *, progress: bool = False
    ) -> Float[Tensor, "items grades"]:
        """Return the probability of each grade for each (prompt, response), among the grades."""
        rows = [evaluation_ids(self.tokenizer, p, r, self.criterion) for p, r in zip(prompts, responses, strict=True)]
        law = torch.zeros(len(rows), len(GRADES))
        batches = by_length(list(map(len, rows)), rows=self.batch_size)
        with evaluating(self.model):
            for batch in tqdm(batches, desc="grade", unit="batch", disable=not progress, mininterval=1.0):
                law[batch] = self.grade_logits(*self._padded([rows[i] for i in batch])).softmax(-1).float().cpu()
        return law

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        return padded(rows, side="left", value=self.padding, device=self.model.device)

    def score(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """Return the expected grade of each response to one prompt."""
        return expected_grade(self.law([prompt] * len(responses), responses)).tolist()

    def grade_logits(self, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "batch grades"]:
        """Return logits of the grade tokens after sequences padded on the left."""
        mask = attention_mask.long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.model(input_ids=input_ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
        return output.logits[:, -1, self.grade_tokens].float()


def expected_grade(law: Float[Tensor, "items grades"]) -> Float[Tensor, " items"]:
    """Return the mean grade under each law."""
    return law @ torch.tensor(GRADES, dtype=law.dtype)


def _grade_tokens(tokenizer: Any) -> list[int]:
    tokens = [tokenizer(str(grade), add_special_tokens=False).input_ids for grade in GRADES]
    if any(len(ids) != 1 for ids in tokens):
        raise ValueError("a grade is not a single token of this tokenizer: use a model whose digits are")
    return [ids[0] for ids in tokens]


def _trainer(judge: GenerativeJudge, rows: list[dict[str, Any]], plan: GenerativePlan, folder: str) -> Any:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class GradeTrainer(Trainer):
        """Cross-entropy among the grades, at the one token where the grade is said."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            grades = inputs.pop("grades")
            logits = judge.grade_logits(**inputs)
            loss = torch.nn.functional.cross_entropy(logits, grades)
            return (loss, logits) if return_outputs else loss

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids, mask = padded([row["ids"] for row in batch], side="left", value=judge.padding)
        return {"input_ids": ids, "attention_mask": mask, "grades": torch.tensor([row["grade"] for row in batch])}

    arguments = TrainingArguments(
        output_dir=folder, num_train_epochs=plan.epochs, per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate, lr_scheduler_type="cosine", warmup_steps=2, seed=plan.seed,
        save_strategy="no", report_to=[], logging_strategy="epoch", remove_unused_columns=False, disable_tqdm=True,
        use_cpu=judge.model.device.type == "cpu", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = GradeTrainer(model=judge.model, args=arguments, train_dataset=cast(Any, rows), data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    return trainer
