"""Objectives against hand values and their gradients, sampling of rows, and rankers that learn what can be learnt."""

import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from lib import zoo
from lib.autoinstruct import (
    Candidate,
    CrossEncoder,
    FrozenHead,
    LabelTable,
    YesLogit,
    binary,
    draw_rows,
    fit,
    listwise_kl,
    load_scorer,
    pointwise,
    popularity,
    popularity_weights,
    predict,
    target_distribution,
)
from lib.autoinstruct.modeling import Prepared, Scorer
from lib.autoinstruct.objectives import z_scores
from lib.autoinstruct.trainer import choose, per_example, per_task


def test_the_listwise_objective_against_hand_values():
    metric, scores = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 0.0]])
    p = 1 / (1 + math.exp(-2.0))  # z-scores are -1 and 1
    torch.testing.assert_close(target_distribution(metric), torch.tensor([[1 - p, p]]))
    by_hand = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(listwise_kl(scores, metric)) == pytest.approx(by_hand, rel=1e-6)
    assert float(listwise_kl(3 + z_scores(metric), metric)) == pytest.approx(0, abs=1e-7)


def test_its_gradient_is_q_minus_p_and_passes_gradcheck():
    torch.manual_seed(0)
    metric = torch.rand(3, 5, dtype=torch.float64)
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    listwise_kl(scores, metric).backward()
    torch.testing.assert_close(scores.grad, (scores.softmax(-1) - target_distribution(metric)).detach() / 3)
    assert torch.autograd.gradcheck(lambda s: listwise_kl(s, metric), scores)


def test_only_differences_between_scores_matter_list_wise():
    metric, scores = torch.rand(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(listwise_kl(scores + 7, metric), listwise_kl(scores, metric))
    assert float(pointwise(scores + 7, metric)) > float(pointwise(scores, metric))


def test_z_scores_with_ties():
    found = z_scores(torch.tensor([[1.0, 1.0, 4.0]]))
    torch.testing.assert_close(found, torch.tensor([[-(0.5**0.5), -(0.5**0.5), 2**0.5]]))
    with pytest.raises(ValueError, match="leave such rows out"):
        z_scores(torch.tensor([[0.1, 0.1, 0.1], [0.0, 1.0, 2.0]]))


def test_the_ablations_against_hand_values():
    metric = torch.tensor([[0.0, 1.0]])
    assert float(pointwise(torch.tensor([[-1.0, 2.0]]), metric)) == pytest.approx(0.5)
    assert float(binary(torch.tensor([[0.0, 0.0]]), metric)) == pytest.approx(math.log(2))
    assert float(binary(torch.tensor([[-9.0, 9.0]]), metric)) < 1e-3


def table(metric, name="t", texts=None):
    metric = np.asarray(metric, dtype=float)
    candidates = tuple(Candidate(text, "rule", text) for text in texts or [f"c{i}" for i in range(metric.shape[1])])
    return LabelTable(name, tuple(f"x{i}" for i in range(len(metric))), candidates, metric)


def test_popularity_counts_ties_and_its_weights_are_softmax_of_minmax_of_the_inverse():
    metric = np.array([[1.0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    assert popularity(metric).tolist() == [1, 4, 0]
    weights = popularity_weights(np.array([1, 4, 0]))  # 1 / p: 1, 1/4, and 0 at p = 0 -> MinMax 1, 1/4, 0
    by_hand = np.exp([1, 0.25, 0])
    np.testing.assert_allclose(weights, by_hand / by_hand.sum())
    np.testing.assert_allclose(popularity_weights(np.array([3, 3])), [0.5, 0.5])


def test_rows_without_a_range_are_dropped_and_a_limit_is_kept():
    made = table([[0, 0.05, 0.02], [0.3, 0.3, 0.3], [0, 1, 0.5], [0.2, 0.9, 0]])
    rows = draw_rows(made, np.random.default_rng(0), candidates=3)
    assert [row.input for row in rows] == ["x2", "x3"]
    assert all(len(set(row.instructions)) == 3 for row in rows)
    assert dict(zip(rows[0].instructions, rows[0].metric, strict=True)) == {"c0": 0.0, "c1": 1.0, "c2": 0.5}
    assert len(draw_rows(made, np.random.default_rng(0), candidates=2, lowest_range=0.0, limit=1)) == 1


class Scripted(np.random.Generator):
    """Draws what it is told to, and notes the probabilities."""

    def __init__(self, drawn):
        super().__init__(np.random.PCG64(0))
        self.drawn, self.asked = list(drawn), []

    def choice(self, a, size=None, replace=True, p=None, axis=0, shuffle=True):
        self.asked.append(p)
        return np.array(self.drawn.pop(0))


def test_over_the_limit_a_row_weighs_by_the_sum_of_its_candidates_popularity():
    rng = Scripted([[0, 1], [0, 2], [1, 2], [0]])  # candidates of each row, then the row that is kept
    rows = draw_rows(table([[1, 0, 0.5], [1, 0, 0.5], [0, 1, 0.5]]), rng, candidates=2, limit=1)
    assert [row.input for row in rows] == ["x0"]
    # Best of their rows: the first twice, the second once. Sums 3, 2, 1 -> 1 / p = 1/3, 1/2, 1 -> MinMax 0, 1/4, 1.
    by_hand = np.exp([0, 0.25, 1])
    np.testing.assert_allclose(rng.asked[-1], by_hand / by_hand.sum())


def test_a_table_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="expected \\(1, 2\\)"):
        LabelTable("t", ("x",), (Candidate("a", "rule", "a"), Candidate("b", "rule", "b")), np.zeros((2, 2)))


TEXTS = ["Reply at length.", "Answer with a number only.", "Tell a story about it.", "Sing."]


def learnable(count=6):
    rng = np.random.default_rng(1)
    quality = np.array([0.2, 1.0, 0.5, 0.0])
    return [table(quality + 0.1 * rng.random((4, 4)), f"t{i}", TEXTS) for i in range(count)]


@pytest.fixture(scope="module")
def encoder():
    return zoo.load_encoder("minilm")


@pytest.mark.parametrize("objective", ["listwise", "pointwise", "binary"])
def test_a_frozen_head_learns_which_instruction_is_good(encoder, objective):
    torch.manual_seed(0)
    scorer, tables = FrozenHead(encoder, width=16), learnable()
    losses = fit(scorer, tables[:4], objective=objective, epochs=6, lr=3e-3, candidates=4, progress=False)
    assert losses[-1] < losses[0]
    good = {1, 2} if objective == "binary" else {1}  # the binary target only knows which are above the mean
    for scores in predict(scorer, tables[4:]):
        assert set(per_example(scores)) <= good
        assert set(per_task(scores)) <= good
    assert TEXTS.index(choose(scorer, "x9", tables[0].candidates).text) in good
    assert TEXTS.index(choose(scorer, ["x8", "x9"], tables[0].candidates).text) in good


class Widths(Scorer):
    """Scores by one weight, and notes how many pairs it was asked about at once."""

    def __init__(self):
        super().__init__()
        self.weight, self.asked = torch.nn.Parameter(torch.ones(1)), []

    def prepare(self, pairs, *, progress=False):
        return [torch.arange(float(len(pairs)))]

    def forward(self, prepared):
        self.asked.append(len(prepared))
        return self.weight * prepared


def test_a_task_with_few_candidates_takes_none_from_the_others():
    rng = np.random.default_rng(0)
    wide, narrow = table(rng.random((6, 9)), "wide"), table(rng.random((3, 2)), "narrow")
    scorer = Widths()
    options = {"epochs": 2, "batch_rows": 4, "lowest_range": 0.0, "progress": False}
    assert len(fit(scorer, [wide, narrow], **options)) == len(scorer.asked) == 6
    for epoch in (scorer.asked[:3], scorer.asked[3:]):  # six rows of eight, three of two
        assert sorted(epoch) == [3 * 2, 2 * 8, 4 * 8]


def test_a_task_that_a_ranker_cannot_learn_from_is_named():
    with pytest.raises(ValueError, match="there is no table to learn from"):
        fit(Widths(), [])
    with pytest.raises(ValueError, match="task 'poor' has fewer than two candidates"):
        fit(Widths(), [table(np.eye(3)), table(np.ones((3, 1)), "poor")], lowest_range=0.0)


def test_a_cross_encoder_is_the_encoder_below_and_trains_above(encoder):
    torch.manual_seed(0)
    before = {name: weight.clone() for name, weight in encoder.model.state_dict().items()}
    scorer = CrossEncoder(encoder.model, encoder.tokenizer, trained_layers=1, max_tokens=32)
    pairs = [("2 + 2", "Add."), ("a much longer input than the other one", "Answer with one word only.")]
    hidden, present = scorer.prepare(pairs)
    inputs = encoder.tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")  # fits uncut
    with torch.inference_mode():
        wanted = encoder.model(**inputs, output_hidden_states=True).hidden_states[-2]
    longest = wanted.shape[1]
    mask = present[:, :longest, None]
    torch.testing.assert_close(hidden[:, :longest] * mask, wanted.bfloat16() * mask, atol=0.03, rtol=0.03)
    fit(scorer, learnable()[:4], epochs=4, lr=1e-3, candidates=4, progress=False)
    assert set(per_example(predict(scorer, learnable()[4:])[0])) == {1}
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.model.state_dict().items())


def test_pairs_that_were_not_prepared_are_named(encoder):
    prepared = Prepared(FrozenHead(encoder), [("x", "y")])
    with pytest.raises(ValueError, match="was not prepared"):
        prepared.take([("x", "z")])


def test_the_yes_logit_of_an_encoder_decoder_is_generates_first_score(lm):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(lm[1]), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    scorer = YesLogit(T5ForConditionalGeneration(config).eval(), lm[1])
    pairs = [("2 + 2", "Add."), ("a longer example", "Answer in one word.")]
    ids, present = scorer.prepare(pairs)
    with torch.inference_mode():
        found = scorer(ids, present)
        for row, (text, instruction) in enumerate(pairs):
            alone = scorer(*scorer.prepare([(text, instruction)]))
            torch.testing.assert_close(found[row], alone[0], atol=1e-4, rtol=1e-4)
        out = scorer.model.generate(
            input_ids=ids, attention_mask=present.long(), max_length=2, output_scores=True, return_dict_in_generate=True
        )
    torch.testing.assert_close(out.scores[0][:, scorer.yes], found, atol=1e-4, rtol=1e-4)
    losses = fit(scorer, learnable()[:2], epochs=1, candidates=4, progress=False)
    assert all(map(math.isfinite, losses))


def test_rankers_come_by_name_or_folder(tmp_path):
    assert isinstance(load_scorer("minilm"), CrossEncoder)
    T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path)
    zoo.load_encoder("minilm").tokenizer.save_pretrained(tmp_path)
    assert isinstance(load_scorer(str(tmp_path)), YesLogit)


def test_bad_settings_are_refused(encoder):
    with pytest.raises(ValueError, match="no objective 'best'"):
        fit(FrozenHead(encoder), learnable(1), objective="best")
    with pytest.raises(ValueError, match="lower lowest_range"):
        fit(FrozenHead(encoder), [table(np.zeros((3, 3)))])
    small = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="has 1 layers"):
        CrossEncoder(small, None, trained_layers=2)
    with pytest.raises(ValueError, match="no BERT-like"):
        CrossEncoder(torch.nn.Linear(1, 1), None)
    with pytest.raises(ValueError, match="at least one input"):
        choose(FrozenHead(encoder), [], [Candidate("a", "rule", "a")])


def test_the_papers_ranker_planned_on_the_meta_device(encoder):
    """FLAN-T5-Large's public configuration: its head is tied here, so that 33 M of its 783 M are counted once."""
    config = T5Config(
        vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        scorer = YesLogit(T5ForConditionalGeneration(config), encoder.tokenizer)
    assert sum(weight.numel() for weight in scorer.parameters()) == pytest.approx(750e6, rel=0.001)


def test_one_instruction_for_a_task_has_the_highest_mean_score():
    scores = np.array([[3.0, 2.0, 0.0], [-3.0, 1.0, 0.0]])
    assert per_example(scores).tolist() == [0, 1]
    assert per_task(scores).tolist() == [1, 1]


def test_an_encoder_with_one_kind_of_token_ranks_and_its_length_is_kept(encoder):
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(encoder.tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=34, type_vocab_size=1, pad_token_id=1,
    )  # fmt: skip
    model = RobertaModel(config).eval()
    scorer = CrossEncoder(model, encoder.tokenizer, trained_layers=1, max_tokens=32)
    scores = scorer(*scorer.prepare([("an input", "an instruction " * 20), ("another", "one")]))
    assert scores.shape == (2,)
    with pytest.raises(ValueError, match="max_tokens = 33: RobertaModel reads 32"):
        CrossEncoder(model, encoder.tokenizer, max_tokens=33)
