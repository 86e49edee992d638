"""The third response of a prompt: what the reference policy said, drawn or most likely."""

from lib import TenfoldError
from lib.preference import Scored


def third_response(group: Scored) -> dict[str, list[int]]:
    """Columns `sampled_ids` (the first draw) and, where there is a greedy response, `greedy_ids`; for `online(extra=)`.

    Both are among the candidates that were ranked, as in Algorithm 1 of arXiv:2405.19332. Raises TenfoldError where
    the prompt has no sampled response.
    """
    drawn = group.samples()
    if not drawn:
        raise TenfoldError("a prompt has no sampled response: sample with k of at least 1.")
    found = {"sampled_ids": list(drawn[0].tokens)}
    return found if group.greedy is None else found | {"greedy_ids": list(group.responses[group.greedy].tokens)}
