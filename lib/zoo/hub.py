"""Names that are not short names go to the Hugging Face hub; an unreachable hub is one sentence, not many retries."""

import math
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar
from urllib.parse import urlparse
from urllib.request import getproxies

from lib import FULL_DISK, TenfoldError

Loaded = TypeVar("Loaded")
SECONDS, AGAIN = 3.0, 10.0  # how long the hub has to answer, and when one that did not is asked anew
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:.*)?")  # owner/name, of data also owner/name:configuration
LOST = {"LocalEntryNotFoundError", "ConnectionError", "TransportError"}  # of the hub's clients: no connection
REFUSALS = {"HfHubHTTPError", "DatasetNotFoundError"}  # the name, the file or the login is wrong
stand_in: Callable[..., Any] | None = None  # in a rehearsal: what is given in place of anything of the hub


def from_hub(load: Callable[..., Loaded], name: str, short_names, **options) -> Loaded:
    """Load something by hub name or local folder; raises TenfoldError where it is neither here nor to be had."""
    if os.path.isdir(folder := os.path.expanduser(name)):
        return load(folder, **options)
    if "/" not in name:
        raise TenfoldError(_unknown(name, list(short_names)))
    if not HUB_NAME.fullmatch(name):
        raise TenfoldError(f"there is no folder {name!r}: give one that is there, or a hub name, 'owner/name'.")
    if stand_in is not None:
        return stand_in(load, name, **options)
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0", "false") or not reachable(_endpoint())
    try:
        with _offline() if offline else nullcontext():
            return load(name, **options)
    except TenfoldError:
        raise
    except Exception as error:
        # transformers tells the hub's error as the cause of an OSError.
        kinds = {kind.__name__ for told in (error, error.__cause__) for kind in type(told).__mro__}
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise TenfoldError(
                f"the disk is full: {name!r} could not be written to the local Hugging Face cache; free some space, or "
                "set HF_HOME to a folder on a larger disk."
            ) from None
        if offline or kinds & LOST:
            raise TenfoldError(
                f"{name!r} is not in the local Hugging Face cache and the hub cannot be reached: connect (unset "
                f"HF_HUB_OFFLINE, check HTTPS_PROXY), or use a short name: {', '.join(short_names)}."
            ) from None
        if kinds & REFUSALS or type(error) is OSError:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
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


_answers: dict[str, tuple[bool, float]] = {}  # what each endpoint's last trial said, and when that was


def reachable(endpoint: str) -> bool:
    """Whether the hub answers a connection within three seconds (a proxy is taken at its word).

    It is tried once where it answers; one that does not is tried again after ten seconds, since people connect and run
    their cell again.
    """
    if any(getproxies().get(kind) for kind in ("https", "all")):
        return True
    answered, when = _answers.get(endpoint, (False, -math.inf))
    if answered or time.monotonic() - when < AGAIN:
        return answered
    place = urlparse(endpoint)
    try:
        with socket.create_connection((place.hostname, place.port or (80 if place.scheme == "http" else 443)), SECONDS):
            answered = True
    except OSError:
        answered = False
    _answers[endpoint] = answered, time.monotonic()
    return answered
