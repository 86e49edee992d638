"""The accept-or-resample kernel: its law is the target's, whatever was drafted."""

import numpy as np
import pytest
import torch
from scipy import stats

from lib.core.generation import draw
from lib.tempspec import Warping, verify, verify_greedy
from lib.tempspec.drafters import siblings

ROWS = 40_000


def probabilities(seed: int, *shape: int, zeros: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(*shape, generator=generator)
    if zeros:
        logits[..., ::3] = -torch.inf
    return logits.softmax(-1)


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    law = law.astype(np.float64)
    assert counts[law == 0].sum() == 0
    return stats.chisquare(counts[law > 0], law[law > 0] / law.sum() * counts.sum()).pvalue


@pytest.mark.parametrize("zeros", [False, True], ids=["full", "reduced draft vocabulary"])
def test_joint_law_of_a_block_is_the_targets(zeros):
    vocab, gamma = 5, 2
    q, p = probabilities(0, gamma, vocab, zeros=zeros), probabilities(1, gamma + 1, vocab)
    generator = torch.Generator().manual_seed(2)
    drafted = draw(q.expand(ROWS, -1, -1), generator=generator)
    # Here p and q do not depend on earlier tokens, so the joint law of the first two tokens is a product.
    checked = verify(drafted, q.expand(ROWS, -1, -1), p.expand(ROWS, -1, -1), generator=generator)
    first = torch.where(checked.accepted > 0, drafted[:, 0], checked.next_token)
    assert p_value(np.bincount(first, minlength=vocab), p[0].numpy()) > 1e-3
    second = torch.where(checked.accepted > 1, drafted[:, 1], checked.next_token)
    pairs = (first * vocab + second)[checked.accepted > 0]
    # Given that the first token was accepted it is drawn from min(p, q), and the second from p whatever it was.
    law = torch.outer(torch.minimum(p[0], q[0]), p[1]).flatten().numpy()
    assert p_value(np.bincount(pairs, minlength=vocab**2), law) > 1e-3


def test_acceptance_rate_is_one_less_the_total_variation():
    q, p = probabilities(3, 1, 8), probabilities(4, 2, 8)
    generator = torch.Generator().manual_seed(5)
    drafted = draw(q.expand(ROWS, -1, -1), generator=generator)
    rate = verify(drafted, q.expand(ROWS, -1, -1), p.expand(ROWS, -1, -1), generator=generator).accepted.float().mean()
    assert float(rate) == pytest.approx(float(torch.minimum(p[0], q[0]).sum()), abs=0.01)


def test_rows_may_draft_fewer_tokens():
    q, p = probabilities(6, 2, 3, 4), probabilities(7, 2, 4, 4)
    p[:, :3] = q  # everything drafted is accepted
    drafted = draw(q, generator=torch.Generator().manual_seed(0))
    checked = verify(drafted, q, p, valid=torch.arange(3) < torch.tensor([[1], [3]]))
    assert checked.accepted.tolist() == [1, 3]


def test_the_bonus_token_of_a_short_row_comes_from_the_row_after_its_drafts():
    q = probabilities(8, 1, 2, 4)
    p = torch.cat([q, torch.zeros(1, 1, 4)], dim=1)
    p[0, 1] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    checked = verify(torch.zeros(1, 2, dtype=torch.long), q, p, valid=torch.tensor([[True, False]]))
    assert (checked.accepted.tolist(), checked.next_token.tolist()) == ([1], [3])


def test_greedy_is_the_special_case_of_certain_probabilities():
    logits = torch.randn(64, 4, 5, generator=torch.Generator().manual_seed(9))
    choice = logits.argmax(-1)
    drafted = torch.where(torch.rand(64, 3) < 0.7, choice[:, :3], torch.randint(0, 5, (64, 3)))
    greedy = Warping(temperature=0)
    by_sampling = verify(drafted, torch.nn.functional.one_hot(drafted, 5).float(), greedy.probs(logits))
    by_choice = verify_greedy(drafted, choice)
    assert by_sampling.accepted.tolist() == by_choice.accepted.tolist()
    assert by_sampling.next_token.tolist() == by_choice.next_token.tolist()


@pytest.mark.parametrize("certain", [False, True])
def test_siblings_without_replacement_keep_the_targets_law(certain):
    """Three children of the root: drawn from q one after another, or the same ones always; p is what comes out."""
    vocab, count = 6, 3
    q, p = probabilities(12, vocab), probabilities(13, vocab)
    generator = torch.Generator().manual_seed(14)
    laws = None if certain else q.expand(ROWS, 1, vocab)
    drawn = torch.tensor([[[4, 1, 2]]]).expand(ROWS, 1, count)
    if not certain:
        drawn, possible = siblings(q.expand(ROWS, 1, vocab), count, Warping(1.0), generator)
        assert possible.all()
        # The pair of the first two has the law q(x) q(y) / (1 - q(x)).
        pairs = (q[:, None] * q / (1 - q[:, None])).fill_diagonal_(0).flatten().numpy()
        counts = np.bincount(drawn[:, 0, 0] * vocab + drawn[:, 0, 1], minlength=vocab**2)
        assert p_value(counts, pairs) > 1e-3
    tree = torch.zeros(ROWS, count, dtype=torch.long)
    target = torch.cat([p.expand(ROWS, 1, vocab), torch.full((ROWS, count, vocab), 1 / vocab)], dim=1)
    checked = verify(drawn[:, 0], laws, target, parents=tree, generator=generator)
    assert checked.path.sum(1).max() == 1
    child = drawn[:, 0].gather(1, (checked.end - 1).clamp(min=0)[:, None])[:, 0]
    first = torch.where(checked.accepted > 0, child, checked.next_token)
    assert p_value(np.bincount(first, minlength=vocab), p.numpy()) > 1e-3
    if certain:  # each is accepted with p itself: nothing of the mass of the children is left
        assert float(checked.accepted.float().mean()) == pytest.approx(float(p[[4, 1, 2]].sum()), abs=0.01)


def test_a_trees_shape_may_depend_on_what_was_drafted():
    """Two children of the root, and two of the smaller of them: the first two tokens are drawn from the target."""
    vocab = 4
    q, p, after_q, after_p = (probabilities(seed, *shape) for seed, shape in zip(
        (15, 16, 17, 18), [(vocab,), (vocab,), (vocab, vocab), (vocab, vocab)], strict=True,
    ))  # fmt: skip
    generator, everywhere = torch.Generator().manual_seed(19), torch.arange(ROWS)
    drawn = siblings(q.expand(ROWS, 1, vocab), 2, Warping(1.0), generator)[0][:, 0]
    parent = drawn.argmin(1)
    below = siblings(after_q[drawn[everywhere, parent]][:, None], 2, Warping(1.0), generator)[0][:, 0]
    tokens = torch.cat([drawn, below], dim=1)
    parents = torch.stack([0 * parent, 0 * parent, parent + 1, parent + 1], dim=1)
    laws = torch.cat([q.expand(ROWS, 1, vocab), after_q[drawn]], dim=1)
    target = torch.cat([p.expand(ROWS, 1, vocab), after_p[drawn], torch.full((ROWS, 2, vocab), 1 / vocab)], dim=1)
    checked = verify(tokens, laws, target, parents=parents, generator=generator)
    assert checked.accepted.max() == 2
    child = tokens.gather(1, checked.path.int().argmax(1, keepdim=True))[:, 0]
    first = torch.where(checked.accepted > 0, child, checked.next_token)
    grandchild = tokens[everywhere, (checked.end - 1).clamp(min=0)]
    second = torch.where(checked.accepted > 1, grandchild, checked.next_token)
    second = torch.where(checked.accepted > 0, second, draw(after_p[first], generator=generator))
    assert (
        p_value(np.bincount(first * vocab + second, minlength=vocab**2), (p[:, None] * after_p).flatten().numpy())
        > 1e-3
    )


def test_of_a_chain_more_is_accepted_than_token_by_token():
    """The example of arXiv:2403.10444, section 1: 10 / 9 tokens by arXiv:2211.17192 and 11 / 9 by blocks."""
    q, p = torch.tensor([2 / 3, 1 / 3]).expand(ROWS, 2, 2), torch.tensor([1 / 3, 2 / 3]).expand(ROWS, 3, 2)
    generator = torch.Generator().manual_seed(20)
    checked = verify(draw(q, generator=generator), q, p, generator=generator)
    assert float(checked.accepted.float().mean()) == pytest.approx(11 / 9, abs=0.02)


def test_a_drafted_token_of_probability_zero_is_refused():
    q = torch.tensor([[[0.0, 1.0]]])
    with pytest.raises(ValueError, match="draft probability 0"):
        verify(torch.tensor([[0]]), q, torch.full((1, 2, 2), 0.5))


def test_the_same_seed_gives_the_same_block_and_drafting_noise_is_apart():
    q, p = probabilities(10, 64, 1, 50), probabilities(11, 64, 2, 50)
    generator = torch.Generator().manual_seed(3)
    drafted = draw(q, generator=generator)
    state = generator.get_state()
    first = verify(drafted, q, p, generator=generator)
    generator.set_state(state)
    assert torch.equal(verify(drafted, q, p, generator=generator).next_token, first.next_token)
    assert not torch.equal(state, torch.Generator().manual_seed(3).get_state())  # drafting has used its own noise


def test_noise_of_drafting_and_of_the_residual_are_independent():
    # With p uniform on two tokens that q never draws, every draft is refused: the residual must not depend on it.
    q = torch.tensor([0.5, 0.5, 0.0, 0.0]).expand(ROWS, 1, 4)
    p = torch.tensor([0.0, 0.0, 0.5, 0.5]).expand(ROWS, 2, 4)
    generator = torch.Generator().manual_seed(4)
    drafted = draw(q, generator=generator)
    checked = verify(drafted, q, p, generator=generator)
    table = np.zeros((2, 2))
    np.add.at(table, (drafted[:, 0].numpy(), checked.next_token.numpy() - 2), 1)
    assert checked.accepted.sum() == 0
    assert stats.chi2_contingency(table).pvalue > 1e-3
