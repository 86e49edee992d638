"""LoRC: low-rank compression of the KV cache with a progressive strategy (arXiv:2410.03111)."""

from lib.lorc.budget import Plan, by_gain, energy, only_layers, progressive, uniform
from lib.lorc.cache import LowRankCache
from lib.lorc.calibrate import Calibration, calibrate
from lib.lorc.compress import compress, plan
from lib.lorc.decompose import Basis, Factors, basis, decompose
from lib.lorc.decomposition import Decomposition, decompose_model
from lib.lorc.modeling import from_pretrained
from lib.lorc.perplexity import Document, DocumentScores, answer_documents, document_nll, token_log_likelihoods
from lib.lorc.replace import replace_weights, replaced
from lib.lorc.spectra import Spectra, cumulative_log_condition, log_condition_numbers, singular_values

__all__ = [
    "Basis",
    "Calibration",
    "Decomposition",
    "Document",
    "DocumentScores",
    "Factors",
    "LowRankCache",
    "Plan",
    "Spectra",
    "answer_documents",
    "basis",
    "by_gain",
    "calibrate",
    "compress",
    "cumulative_log_condition",
    "decompose",
    "decompose_model",
    "document_nll",
    "energy",
    "from_pretrained",
    "log_condition_numbers",
    "only_layers",
    "plan",
    "progressive",
    "replace_weights",
    "replaced",
    "singular_values",
    "token_log_likelihoods",
    "uniform",
]
