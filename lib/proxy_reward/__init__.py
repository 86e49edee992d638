"""Proxy reward: a cheap evaluator from few expert labels, chosen by active learning (arXiv:2407.02119)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib.proxy_reward.active import QueryPool, select
    from lib.proxy_reward.apart import SameJudge, final_scores, keep_apart
    from lib.proxy_reward.bradley_terry import BradleyTerryHead, fit_bradley_terry
    from lib.proxy_reward.covering import Covering, covering_radius, k_center
    from lib.proxy_reward.criteria import Criterion, Judgement, evaluation_prompt
    from lib.proxy_reward.curves import learning_curve
    from lib.proxy_reward.embeddings import Pooled, pooled_states
    from lib.proxy_reward.evaluation import imbalance, pair_agreement
    from lib.proxy_reward.generative import GenerativeJudge, GenerativePlan
    from lib.proxy_reward.labelling import Expert
    from lib.proxy_reward.pseudo_labels import pseudo_label
    from lib.proxy_reward.ridge import RidgeHead, fit_ridge

PLACES = {
    "active": ["QueryPool", "select"],
    "apart": ["SameJudge", "final_scores", "keep_apart"],
    "bradley_terry": ["BradleyTerryHead", "fit_bradley_terry"],
    "covering": ["Covering", "covering_radius", "k_center"],
    "criteria": ["Criterion", "Judgement", "evaluation_prompt"],
    "curves": ["learning_curve"],
    "embeddings": ["Pooled", "pooled_states"],
    "evaluation": ["imbalance", "pair_agreement"],
    "generative": ["GenerativeJudge", "GenerativePlan"],
    "labelling": ["Expert"],
    "pseudo_labels": ["pseudo_label"],
    "ridge": ["RidgeHead", "fit_ridge"],
}
_MODULE_OF = {name: module for module, names in PLACES.items() for name in names}
__all__ = [
    "BradleyTerryHead",
    "Covering",
    "Criterion",
    "Expert",
    "GenerativeJudge",
    "GenerativePlan",
    "Judgement",
    "Pooled",
    "QueryPool",
    "RidgeHead",
    "SameJudge",
    "covering_radius",
    "evaluation_prompt",
    "final_scores",
    "fit_bradley_terry",
    "fit_ridge",
    "imbalance",
    "k_center",
    "keep_apart",
    "learning_curve",
    "pair_agreement",
    "pooled_states",
    "pseudo_label",
    "select",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"lib.proxy_reward.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'lib.proxy_reward' has no attribute {name!r}")
