"""SciAgent: a small language model that uses real scientific libraries (arXiv:2402.11451)."""

from lib.sciagent.program import ProgramRefused
from lib.sciagent.sandbox import Execution, Job, Limits, Sandbox

__all__ = ["Execution", "Job", "Limits", "ProgramRefused", "Sandbox"]
