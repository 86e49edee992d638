"""SciAgent: a small language model that uses real scientific libraries (arXiv:2402.11451)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lib.sciagent.program import ProgramRefused
from lib.sciagent.sandbox import Execution, Job, Limits, Sandbox
from lib.sciagent.tools import Example, Parameter, Tool, Toolset

if TYPE_CHECKING:
    from lib.sciagent.agent import Action, Attempt, Planner, SciAgent, Trace
    from lib.sciagent.retriever import EncoderIndex, HybridIndex, WordIndex

ON_DEMAND = {  # what needs torch is imported with the first use
    **dict.fromkeys(("Action", "Attempt", "Planner", "SciAgent", "Trace"), "agent"),
    **dict.fromkeys(("EncoderIndex", "HybridIndex", "WordIndex"), "retriever"),
}
__all__ = [
    "Action", "Attempt", "EncoderIndex", "Example", "Execution", "HybridIndex", "Job", "Limits", "Parameter", "Planner",
    "ProgramRefused", "Sandbox", "SciAgent", "Tool", "Toolset", "Trace", "WordIndex",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in ON_DEMAND:
        return getattr(import_module(f"lib.sciagent.{ON_DEMAND[name]}"), name)
    raise AttributeError(f"module 'lib.sciagent' has no attribute {name!r}")
