"""SciAgent: a small language model that uses real scientific libraries (arXiv:2402.11451)."""

from lib.sciagent.program import ProgramRefused
from lib.sciagent.sandbox import Execution, Job, Limits, Sandbox
from lib.sciagent.tools import Example, Parameter, Tool
from lib.sciagent.toolset import Toolset

__all__ = ["Example", "Execution", "Job", "Limits", "Parameter", "ProgramRefused", "Sandbox", "Tool", "Toolset"]
