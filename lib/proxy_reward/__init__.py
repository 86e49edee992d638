"""Proxy reward: a cheap evaluator from few expert labels, chosen by active learning (arXiv:2407.02119)."""

from lib.proxy_reward.active import QueryPool, learning_curve, select, select_pairs
from lib.proxy_reward.covering import Covering, covering_radius, k_center
from lib.proxy_reward.embeddings import Pooled, pooled_states
from lib.proxy_reward.evaluators import (
    BradleyTerryHead,
    RidgeHead,
    fit_bradley_terry,
    fit_ridge,
    imbalance,
    pair_agreement,
)
from lib.proxy_reward.expert import Expert, SameJudge, final_scores, keep_apart
from lib.proxy_reward.generative import Criterion, GenerativeJudge, GenerativePlan, Judgement, evaluation_prompt
from lib.proxy_reward.pseudo_labels import pseudo_label

__all__ = [
    "BradleyTerryHead", "Covering", "Criterion", "Expert", "GenerativeJudge", "GenerativePlan", "Judgement",
    "Pooled", "QueryPool", "RidgeHead", "SameJudge", "covering_radius", "evaluation_prompt", "final_scores",
    "fit_bradley_terry", "fit_ridge", "imbalance", "k_center", "keep_apart", "learning_curve", "pair_agreement",
    "pooled_states", "pseudo_label", "select", "select_pairs",
]  # fmt: skip
