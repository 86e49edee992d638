"""Settings of SELM training: trl's DPO settings, and how optimistic to be about what."""

from dataclasses import dataclass, field

from trl import DPOConfig

OPTIMISMS = ("sampled", "greedy")


@dataclass
class SELMConfig(DPOConfig):
    """`trl.DPOConfig` with the weight α of Eq. (4.2) of arXiv:2405.19332 and the kind of third response.

    The defaults are the Zephyr recipe's: one epoch a round, cosine from 5e-7 after a tenth of warm-up, β = 0.01,
    sequences of 1,024 tokens (a prompt is cut before its responses, down to 512). α = 0 is DPO; the paper uses
    α = 0.001 (Zephyr) and 0.0001 (Llama-3). `optimism`: take the third
    response from `sampled_ids` (y ~ π_ref, as the text says) or from `greedy_ids` (as the published code does); a
    column `response_ids` is taken as it is. `share_prompts` encodes a prompt once for its two or three responses (the
    same numbers in less time), for models with full attention. Raises ValueError for settings that the objective
    does not cover.
    """

    beta: float = field(default=0.01, metadata={"help": "Strength of the tie to the reference."})
    learning_rate: float = field(default=5e-7, metadata={"help": "Peak learning rate; falls in later rounds."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over a round's pairs."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Course of the learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up, as a share of all where below 1."})
    max_length: int | None = field(default=1024, metadata={"help": "Longest prompt and response, in tokens."})
    alpha: float = field(default=0.001, metadata={"help": "Weight of the optimism term, multiplied by beta."})
    optimism: str = field(default="sampled", metadata={"help": "Third response: 'sampled' or 'greedy'."})
    share_prompts: bool = field(default=False, metadata={"help": "Encode each prompt once for all its responses."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ValueError(f"alpha = {self.alpha} would be pessimistic: give 0 (DPO) or a positive weight")
        if self.optimism not in OPTIMISMS:
            raise ValueError(f"optimism = {self.optimism!r} is not known: use one of {', '.join(OPTIMISMS)}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing = {self.label_smoothing} must lie in [0, 0.5)")
        if self.f_divergence_type != "reverse_kl" or self.ld_alpha is not None:
            raise ValueError(
                "SELM's objective is derived for the reverse KL of whole sequences: leave f_divergence_type and "
                "ld_alpha at their defaults"
            )
