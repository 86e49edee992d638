"""LoRC: low-rank compression of the KV cache with a progressive strategy (arXiv:2410.03111)."""

from lib.lorc.budget import (
    Spectra,
    by_gain,
    cumulative_log_condition,
    energy,
    log_condition_numbers,
    only_layers,
    progressive,
    singular_values,
    uniform,
)
from lib.lorc.cache import LowRankCache
from lib.lorc.calibration import Calibration, calibrate
from lib.lorc.compression import compress, plan
from lib.lorc.configuration import Geometry, Plan, geometry
from lib.lorc.decomposition import (
    Basis,
    Decomposition,
    Factors,
    basis,
    decompose,
    decompose_model,
    replace_weights,
    replaced,
)
from lib.lorc.modeling import from_pretrained
from lib.lorc.perplexity import Document, DocumentScores, answer_documents, document_nll, token_log_likelihoods

__all__ = [
    "Basis",
    "Calibration",
    "Decomposition",
    "Document",
    "DocumentScores",
    "Factors",
    "Geometry",
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
    "geometry",
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
