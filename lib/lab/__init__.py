"""The experiment side: a notebook starts a run, hands in figures, tables and claims, and the runner keeps it honest."""

import warnings

from tqdm import TqdmWarning

# transformers and datasets ask for widgets that a headless kernel lacks; their bars then are text, as we want them.
warnings.filterwarnings("ignore", message="IProgress not found", category=TqdmWarning)

from lib.core import statistics  # noqa: E402
from lib.lab import figures  # noqa: E402
from lib.lab.run import Run, start  # noqa: E402

__all__ = ["Run", "figures", "start", "statistics"]
