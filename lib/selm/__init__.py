"""SELM: self-exploring language models, DPO that is optimistic where it has not been (arXiv:2405.19332)."""

from lib.selm.bilevel import implicit_reward, inner_value, self_exploring_policy, tilted
from lib.selm.configuration import SELMConfig
from lib.selm.losses import optimism_term, pool_loss, selm_loss
from lib.selm.trainer import SELMTrainer
from lib.selm.triples import third_response

__all__ = [
    "SELMConfig",
    "SELMTrainer",
    "implicit_reward",
    "inner_value",
    "optimism_term",
    "pool_loss",
    "self_exploring_policy",
    "selm_loss",
    "third_response",
    "tilted",
]
