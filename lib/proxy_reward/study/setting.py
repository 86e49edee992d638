"""What the experiment starts from: parameters that fit together, responses as they were kept, pools of policies."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lib import TenfoldError
from lib.preference.pool import Pool
from lib.preference.sampling import Response
from lib.proxy_reward.study.recipes import standardised
from lib.proxy_reward.study.sweeps import KnownPool, PolicySweep


def refuse_contradictions(given: Mapping[str, Any]) -> None:
    """Refuse parameters that contradict each other; raises TenfoldError, which names the condition that fails.

    What one parameter says of another in its range is checked before.
    """
    prompts, k, budgets = given["train_prompts"], given["responses"], given["budgets"]
    arms, multiples, first = given["arm_budgets"], given["multiples"], given["seed_labels"]
    conditions = {
        "lm_arms must hold direct-equal, proxy and oracle": {"direct-equal", "proxy", "oracle"} <= {*given["lm_arms"]},
        "lm_budget must be one of arm_budgets": given["lm_budget"] in arms,
        "the first of budgets must be at most seed_answers": budgets[0] <= given["seed_answers"],
        "the last of budgets must be at most train_prompts x responses": budgets[-1] <= prompts * k,
        "the middle one of budgets must fit a pool": budgets[len(budgets) // 2] <= prompts // given["pools"] * k,
        "5 x seed_labels must be at most train_prompts x responses": 5 * first <= prompts * k,
        "the last of multiples asks for more pairs than there are train_prompts":
            multiples[-1] * (max(arms) // k) <= prompts,
    }  # fmt: skip
    for condition, holds in conditions.items():
        if not holds:
            raise TenfoldError(f"{condition}: change one of them in the parameters cell.")


def responses_of(frame: pd.DataFrame) -> dict[str, list[list[Response]]]:
    """Return the responses to each question of each split, from rows split, question, tokens, text, log_prob, finished.

    Rows of a split lie question by question.
    """
    drawn: dict[str, list[list[Response]]] = {}
    for row in frame.itertuples():
        groups = drawn.setdefault(row.split, [])
        if row.question == len(groups):
            groups.append([])
        groups[-1].append(Response(tuple(map(int, row.tokens)), row.text, row.log_prob, bool(row.finished)))
    return drawn


def policy_sweep(
    own: KnownPool,
    off: KnownPool,
    held_out: Float[Tensor, "items width"],
    *,
    final: Float[Tensor, "questions k"],
    expert: Float[Tensor, "questions k"],
    multiples: Sequence[float],
    batch_size: int,
    beta: float,
    learning_rate: float,
) -> PolicySweep:
    """Return the sweep that trains log-linear policies on own responses and measures them on held-out ones.

    `final` and `expert` are the two judges' scores of the held-out responses. All features are standardised as the own
    responses are; SPIN's pool has the real answer, `off`'s item to the same question, as a further response.
    """
    like, (prompts, k) = own.pool.ift, own.scores.shape
    train = Pool.of(standardised(like, like, k), own.scores)
    answers = standardised(off.pool.ift[:prompts], like, 1)
    with_answers = torch.cat([own.scores, off.scores[:prompts]], dim=1)
    return PolicySweep(
        own=own, off_policy=off, train=train,
        spin=Pool.of(torch.cat([train.features, answers], dim=1), with_answers),
        final=Pool.of(standardised(held_out, like, k), final), expert=Pool.of(standardised(held_out, like, k), expert),
        multiples=multiples, batch_size=batch_size, beta=beta, learning_rate=learning_rate,
    )  # fmt: skip
