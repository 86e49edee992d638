"""What a profile asks of the machine: `[requires.<paper>]`, shown before a run and refused in one sentence.

`gpus` of `gpu_gib` each, `packages` to import, `files` and `endpoints` by the names of the parameters that hold them,
and `served`, the parameters that name models on those endpoints.
"""

import socket
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlparse

from lib import TenfoldError, root

SECONDS = 2.0


def in_words(requires: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """Say what is required, a phrase each."""
    phrases = []
    if gpus := requires.get("gpus"):
        phrases.append(f"{gpus} GPU{'s' * (gpus > 1)} of {requires['gpu_gib']} GiB" + (" each" if gpus > 1 else ""))
    phrases += [f"the package {name}" for name in requires.get("packages", [])]
    phrases += [f"the file {parameters[name]}" for name in requires.get("files", [])]
    models = [parameters[name] for name in requires.get("served", [])]
    served = ", ".join(name for model in models for name in (model if isinstance(model, list) else [model]))
    phrases += [f"a server of {served or 'a model'} at {parameters[name]}" for name in requires.get("endpoints", [])]
    return phrases


def refuse_missing(paper: str, requires: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Raise TenfoldError for the first thing that is required and not here."""
    for missing in _missing(requires, parameters):
        raise TenfoldError(f"{paper} needs {' and '.join(in_words(requires, parameters))} in this profile; {missing}.")


def _missing(requires: dict[str, Any], parameters: dict[str, Any]) -> Iterator[str]:
    if requires.get("gpus"):
        here = _gpus()
        if len(here) < requires["gpus"] or min(here[: requires["gpus"]]) < 0.95 * requires["gpu_gib"]:
            sizes = ", ".join(f"{size:.0f} GiB" for size in here) or "none"
            yield f"the GPUs here: {sizes}: run it where they are, or take PROFILE=cpu"
    for name in requires.get("packages", []):
        if find_spec(name) is None:
            yield f"{name} is not installed: `.venv/bin/python -m pip install {name}`"
    for name in requires.get("files", []):
        if not (root() / parameters[name]).exists():
            yield f"{parameters[name]} is not here: bring it, or set {name}"
    for name in requires.get("endpoints", []):
        if not _answers(parameters[name]):
            yield f"nothing answers at {parameters[name]}: start the server (`make serve`), or set {name}"


def _gpus() -> list[float]:
    """Memory of each GPU, the largest first, in GiB."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sorted((torch.cuda.get_device_properties(i).total_memory / 2**30 for i in range(count)), reverse=True)


def _answers(url: str) -> bool:
    place = urlparse(url)
    try:
        with socket.create_connection(
            (place.hostname, place.port or (443 if place.scheme == "https" else 80)), SECONDS
        ):
            return True
    except OSError:
        return False


def markdown() -> str:
    """Write the README's table of what the `gpu` profile costs and needs, a row a paper."""
    from lib.lab import paths, profiles, report

    gpu = profiles.load("gpu")
    lines = ["| paper | GPUs | hours | what else |", "|---|---|---|---|"]
    for paper in paths.paper_notebooks():
        requires, hours = gpu.requires.get(paper, {}), gpu.cost.get(paper, {}).get("minutes", 0) / 60
        cards = f"{requires['gpus']} × {requires['gpu_gib']} GiB" if requires.get("gpus") else "none"
        others = in_words({k: v for k, v in requires.items() if k != "gpus"}, gpu.values.get(paper, {}))
        lines.append(report.line(paper, cards, f"about {hours:.0f}", ", ".join(others) or "–"))
    return "\n".join(lines)
