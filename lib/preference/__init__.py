"""Preference learning on a real policy: on-policy sampling, judges, a ledger of expert calls, pairs, DPO by trl."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib.preference.adapters import load_policy, save_policy, set_weights, weights, with_lora
    from lib.preference.chat_judge import ChatJudge
    from lib.preference.divergence import reference_divergence, response_log_probs
    from lib.preference.features import principal, response_features
    from lib.preference.judges import RecordedJudge, ReferenceJudge, RewardModelJudge, RougeJudge
    from lib.preference.judging import Judge, JudgeFailed, score_all, win_rate
    from lib.preference.ledger import BudgetExceeded, Ledger, Metered
    from lib.preference.losses import dpo_loss
    from lib.preference.pairing import PairCounts, Scored, best_and_worst, pairs
    from lib.preference.pool import Pool, PoolLogProbs, PoolPairs, draw_pairs, online_pool
    from lib.preference.prompts import Question, questions
    from lib.preference.rounds import Round, Sampling, adopt_samples, online, read_round
    from lib.preference.sampling import Response, sample
    from lib.preference.training import TokenDPOTrainer, config, train

PLACES = {
    "adapters": ["load_policy", "save_policy", "set_weights", "weights", "with_lora"],
    "chat_judge": ["ChatJudge"],
    "divergence": ["reference_divergence", "response_log_probs"],
    "features": ["principal", "response_features"],
    "judges": ["RecordedJudge", "ReferenceJudge", "RewardModelJudge", "RougeJudge"],
    "judging": ["Judge", "JudgeFailed", "score_all", "win_rate"],
    "ledger": ["BudgetExceeded", "Ledger", "Metered"],
    "losses": ["dpo_loss"],
    "pairing": ["PairCounts", "Scored", "best_and_worst", "pairs"],
    "pool": ["Pool", "PoolLogProbs", "PoolPairs", "draw_pairs", "online_pool"],
    "prompts": ["Question", "questions"],
    "rounds": ["Round", "Sampling", "adopt_samples", "online", "read_round"],
    "sampling": ["Response", "sample"],
    "training": ["TokenDPOTrainer", "config", "train"],  # the only place that needs trl (seconds to import)
}
_MODULE_OF = {name: module for module, names in PLACES.items() for name in names}
__all__ = [
    "BudgetExceeded",
    "ChatJudge",
    "Judge",
    "JudgeFailed",
    "Ledger",
    "Metered",
    "PairCounts",
    "Pool",
    "PoolLogProbs",
    "PoolPairs",
    "Question",
    "RecordedJudge",
    "ReferenceJudge",
    "Response",
    "RewardModelJudge",
    "RougeJudge",
    "Round",
    "Sampling",
    "Scored",
    "TokenDPOTrainer",
    "adopt_samples",
    "best_and_worst",
    "config",
    "dpo_loss",
    "draw_pairs",
    "load_policy",
    "online",
    "online_pool",
    "pairs",
    "principal",
    "questions",
    "read_round",
    "reference_divergence",
    "response_features",
    "response_log_probs",
    "sample",
    "save_policy",
    "score_all",
    "set_weights",
    "train",
    "weights",
    "win_rate",
    "with_lora",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"lib.preference.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'lib.preference' has no attribute {name!r}")
