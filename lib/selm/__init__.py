"""SELM: self-exploring language models, DPO that is optimistic where it has not been (arXiv:2405.19332)."""

from lib.selm.collator import third_response
from lib.selm.configuration import SELMConfig
from lib.selm.objective import (
    implicit_reward,
    inner_value,
    optimism_term,
    pool_loss,
    self_exploring_policy,
    selm_loss,
    tilted,
)
from lib.selm.trainer import SELMTrainer

__all__ = [
    "SELMConfig", "SELMTrainer", "implicit_reward", "inner_value", "optimism_term", "pool_loss",
    "self_exploring_policy", "selm_loss", "third_response", "tilted",
]  # fmt: skip
