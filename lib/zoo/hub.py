"""Names that are not short names go to the Hugging Face hub; an unreachable hub is one sentence, not many retries."""

import os
import socket
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlparse

from lib import TenfoldError

Loaded = TypeVar("Loaded")
SECONDS = 3.0
stand_in: Callable[..., Any] | None = None  # in a rehearsal: what is given in place of anything of the hub


def from_hub(load: Callable[..., Loaded], name: str, short_names, **options) -> Loaded:
    """Load something by hub name or local folder; raises TenfoldError where it is neither here nor to be had."""
    if os.path.isdir(name):
        return load(name, **options)
    if "/" not in name:
        raise TenfoldError(_unknown(name, list(short_names)))
    if stand_in is not None:
        return stand_in(load, name, **options)
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0", "false") or not reachable(_endpoint())
    try:
        with _offline() if offline else nullcontext():
            return load(name, **options)
    except Exception as error:
        if offline:
            raise TenfoldError(
                f"{name!r} is not in the local Hugging Face cache and the hub cannot be reached: connect (and unset "
                f"HF_HUB_OFFLINE), or use a short name: {', '.join(short_names)}."
            ) from None
        if type(error).__name__ in ("RepositoryNotFoundError", "GatedRepoError", "OSError", "DatasetNotFoundError"):
            reason = str(error).strip().splitlines()[0]
            raise TenfoldError(
                f"the hub does not give {name!r} ({reason}): check the name, or log in with `hf auth login`."
            ) from None
        raise


@contextmanager
def _offline():
    """Make the hub's clients look in their caches only; left to themselves they try an unreachable hub six times."""
    import datasets.config
    import huggingface_hub.constants

    switches = (huggingface_hub.constants, datasets.config)
    before = [module.HF_HUB_OFFLINE for module in switches]
    try:
        for module in switches:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _unknown(name: str, short_names: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, short_names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"no asset is called {name!r}: {hint}Short names: {', '.join(short_names)}; hub names are 'owner/name'."


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


@cache
def reachable(endpoint: str) -> bool:
    """Whether the hub answers a connection within three seconds (a proxy is taken at its word)."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    place = urlparse(endpoint)
    try:
        with socket.create_connection((place.hostname, place.port or (80 if place.scheme == "http" else 443)), SECONDS):
            return True
    except OSError:
        return False
