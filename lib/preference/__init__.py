"""Preference learning on a real policy: on-policy sampling, judges, a ledger of expert calls, pairs, DPO by trl."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lib.preference.adapters import load_policy, save_policy, set_weights, weights, with_lora
from lib.preference.chat_judge import ChatJudge
from lib.preference.judges import (
    ByComparison,
    Judge,
    JudgeFailed,
    RecordedJudge,
    ReferenceJudge,
    RewardModelJudge,
    RougeJudge,
    score_all,
    win_rate,
)
from lib.preference.ledger import BudgetExceeded, Ledger, Metered
from lib.preference.losses import dpo_loss
from lib.preference.pairing import AllTie, PairCounts, Scored, best_and_worst, pairs
from lib.preference.pool import Pool, PoolLogProbs, PoolPairs, draw_pairs, online_pool
from lib.preference.rounds import Round, Sampling, adopt_samples, online, read_round
from lib.preference.sampling import Question, Response, questions, sample
from lib.preference.scoring import (
    pair_log_odds,
    principal,
    reference_divergence,
    response_features,
    response_log_probs,
)

if TYPE_CHECKING:
    from lib.preference.trainer import TokenDPOTrainer, config, train

__all__ = [
    "AllTie", "BudgetExceeded", "ByComparison",
    "ChatJudge", "Judge", "JudgeFailed", "Ledger", "Metered", "PairCounts", "Pool",
    "PoolLogProbs", "PoolPairs", "Question", "RecordedJudge", "ReferenceJudge", "Response", "RewardModelJudge",
    "RougeJudge", "Round", "Sampling", "Scored", "TokenDPOTrainer", "adopt_samples", "best_and_worst", "config",
    "dpo_loss", "draw_pairs", "load_policy", "online", "online_pool", "pair_log_odds", "pairs", "principal",
    "questions", "read_round", "reference_divergence", "response_features", "response_log_probs", "sample",
    "save_policy", "score_all", "set_weights", "train", "weights", "win_rate", "with_lora",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in ("TokenDPOTrainer", "config", "train"):  # trl takes seconds to import
        return getattr(import_module("lib.preference.trainer"), name)
    raise AttributeError(f"module 'lib.preference' has no attribute {name!r}")
