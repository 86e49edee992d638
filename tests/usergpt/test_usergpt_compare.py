import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from lib import TenfoldError
from lib.core.statistics import bootstrap_weights, jackknife
from lib.usergpt import Conversation, EmbeddingAnnotator, load_taxonomy
from lib.usergpt.annotation import Annotator
from lib.usergpt.compare import (
    balanced,
    distribution,
    divergence,
    jensen_shannon,
    labelled,
    of_collections,
    rectified,
    resampling_null,
    share_table,
)
from lib.usergpt.similarity import CalibratedAnnotator, Calibration, Cut, cross_fit, indicator, main_labels
from lib.usergpt.study.comparison import nearest_cosine
from lib.usergpt.study.peers import WordEncoder
from lib.usergpt.taxonomy import GoldLabel


def one_hot(draws, size=3):
    return np.eye(size)[draws]


def test_jensen_shannon_is_scipys_distance_squared_in_bits():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), 20), rng.dirichlet(np.ones(6) * 0.3, 20)
    expected = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(jensen_shannon(p, q), expected, atol=1e-12)
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0
    assert jensen_shannon(p[0], 7 * p[0]) == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(
        jensen_shannon(np.array([0.5, 0.5, -0.1]), q[0, :3]), jensen_shannon(np.array([0.5, 0.5, 0.0]), q[0, :3])
    )


def test_resampling_keeps_threads_whole():
    weights = bootstrap_weights(["a", "a", "b", "c"], resamples=500)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    assert np.isclose(weights[:, 0], 0).any()
    with pytest.raises(TenfoldError, match="at least two independent groups"):
        labelled(np.eye(2), ["a", "a"], "ab", unit="parts")


def test_parts_of_one_thread_widen_the_interval():
    labels = np.repeat(one_hot(np.random.default_rng(0).integers(0, 2, 50), 2), 8, axis=0)
    alone = labelled(labels, [str(i) for i in range(400)], "ab", unit="parts").of(["a"])
    together = labelled(labels, [str(i // 8) for i in range(400)], "ab", unit="parts").of(["a"])
    assert together[0] == alone[0]
    assert 2 < (together[2] - together[1]) / (alone[2] - alone[1]) < 4  # sqrt(8) = 2.8


def simulated(quality, rng, gold=150, many=3000):
    """Truth with P(label 0) = .3, and an annotator that is right with a given probability, else says label 1."""
    truth = (rng.random(gold + many) > 0.3).astype(int)
    said = np.where(rng.random(gold + many) < quality, truth, 1)
    return one_hot(truth[:gold], 2), one_hot(said[:gold], 2), one_hot(said[gold:], 2)


def test_correction_removes_an_annotators_bias_and_narrows_the_interval():
    rng = np.random.default_rng(0)
    covered, raw_error, widths, plain_widths = 0, [], [], []
    for _ in range(40):
        truth, said, predicted = simulated(0.8, rng)
        threads = [str(i) for i in range(len(predicted))]
        own = [f"g{i}" for i in range(len(truth))]
        value, low, high = rectified(predicted, threads, truth, said, own, "ab").of(["a"])
        _, plain_low, plain_high = labelled(truth, own, "ab", unit="items").of(["a"])
        covered += low <= 0.3 <= high
        raw_error.append(predicted[:, 0].mean() - 0.3)
        widths.append(high - low)
        plain_widths.append(plain_high - plain_low)
    assert covered >= 34
    assert np.mean(raw_error) < -0.04
    assert np.mean(widths) < 0.8 * np.mean(plain_widths)


def test_a_useless_annotator_costs_nothing():
    rng = np.random.default_rng(1)
    truth, _, _ = simulated(0.8, rng)
    noise = lambda n: one_hot(rng.integers(0, 2, n), 2)  # noqa: E731
    found = rectified(
        noise(3000), [str(i) for i in range(3000)], truth, noise(150), [f"g{i}" for i in range(150)], "ab"
    )
    plain = labelled(truth, [str(i) for i in range(150)], "ab", unit="items")
    assert found.point[0] == pytest.approx(plain.point[0], abs=0.03)
    assert found.draws[:, 0].std() < 1.1 * plain.draws[:, 0].std()


def test_a_divergence_has_its_interval_and_its_null():
    rng = np.random.default_rng(0)
    same = [one_hot(rng.choice(3, 200, p=[0.5, 0.3, 0.2])) for _ in range(2)]
    other = one_hot(rng.choice(3, 200, p=[0.1, 0.2, 0.7]))
    names = [str(i) for i in range(200)]
    first, second, third = (labelled(x, names, "abc", unit="items", seed=s) for s, x in enumerate([*same, other]))
    truth = jensen_shannon(np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7]))
    low, high = divergence(first, third).ci
    assert low < truth < high
    null = resampling_null(same[0], other, resamples=300)
    assert divergence(first, third).ci[0] > np.quantile(null, 0.975)
    assert divergence(first, second).value < np.quantile(resampling_null(*same, resamples=300), 0.99)


def test_a_divergences_interval_is_about_what_samples_of_these_sizes_show():
    """Resampling adds to a divergence what sampling had added once: draws left where they fall lie above it all."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(20, 0.5), size=2)
    sizes = (150, 100)
    shares = [rng.multinomial(n, law, size=4_000) / n for n, law in zip(sizes, (p, q), strict=True)]
    usual = jensen_shannon(*shares).mean()
    assert usual > jensen_shannon(p, q) + 0.02
    covered, as_they_fall = 0, 0
    for run in range(60):
        both = [one_hot(rng.choice(20, n, p=law), 20) for n, law in zip(sizes, (p, q), strict=True)]
        populations = [
            labelled(x, [str(i) for i in range(len(x))], "abcdefghijklmnopqrst", unit="items", seed=2 * run + s)
            for s, x in enumerate(both)
        ]
        found = divergence(*populations)
        assert found.draws.mean() == pytest.approx(found.value)
        covered += found.ci[0] <= usual <= found.ci[1]
        low, high = np.quantile(jensen_shannon(*(x.draws for x in populations)), [0.025, 0.975])
        as_they_fall += low <= usual <= high
    assert covered >= 52
    assert as_they_fall < covered - 5


def test_labels_of_an_item_share_one_vote():
    np.testing.assert_allclose(
        distribution(np.array([[1.0, 1.0, 0.0], [0, 0, 0], [0, 2, 0]])), [[0.5, 0.5, 0], [0, 0, 0], [0, 1, 0]]
    )


def test_the_share_table_has_both_sides_and_the_papers():
    names = [str(i) for i in range(100)]
    users = labelled(one_hot(np.arange(100) % 3), names, "abc", unit="items")
    benchmarks = labelled(one_hot(np.zeros(100, dtype=int)), names, "abc", unit="items", seed=1)
    table = share_table(users, benchmarks, {c: c.upper() for c in "abc"}, {"b": 0.25}).set_index("code")
    assert table.loc["a", "difference"] == pytest.approx(0.34 - 1.0)
    assert table.loc["b", "difference_low"] < table.loc["b", "difference"] < table.loc["b", "difference_high"]
    assert table.loc["b", "paper"] == 0.25
    assert table["paper"].isna().sum() == 2


def test_coverage_is_the_nearest_cosine_in_chunks():
    rng = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(50, 8)), rng.normal(size=(30, 8))))
    np.testing.assert_allclose(nearest_cosine(a, b, chunk=7), (a @ b.T).max(axis=1))


def test_calibration_learns_which_score_to_trust_and_never_sees_what_it_predicts():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 240)
    scores = rng.normal(0, 0.02, (240, 3)) + 0.05 * one_hot(truth) + np.array([0.3, 0.0, 0.0])  # label 0 is near to all
    labels = one_hot(truth)
    assert (scores.argmax(1) == truth).mean() < 0.5
    found = cross_fit(scores, labels, seed=0)
    assert (found.argmax(1) == truth).mean() > 0.7
    shuffled = labels[rng.permutation(240)]
    assert (cross_fit(scores, shuffled).argmax(1) == shuffled.argmax(1)).mean() < 0.5
    rare = np.zeros((240, 1))
    rare[3] = 1
    assert Calibration().fit(scores, rare).predict(scores)[0, 0] == pytest.approx(1 / 240)
    with pytest.raises(ValueError, match="one row of each an item"):
        Calibration().fit(scores, labels[:10])


def test_a_calibrated_annotator_keeps_the_protocol():
    taxonomy = load_taxonomy()
    requests = ["write a poem about rain", "fix the error in my code", "translate this into french"] * 8
    people = [Conversation(str(i), str(i), (text,)) for i, text in enumerate(requests)]
    gold = [
        GoldLabel(c.id, d, (t,))
        for c, (d, t) in zip(people, [("ENT", "CRE"), ("TEC", "DBG"), ("LAN", "TRA")] * 8, strict=True)
    ]
    texts = [text for kind in ("tasks", "domains") for found in taxonomy.texts(kind).values() for text in found]
    base = EmbeddingAnnotator(
        WordEncoder([*texts, *requests], dim=32), taxonomy, task_cut=Cut(0.0), domain_cut=Cut(0.0)
    )
    annotator = CalibratedAnnotator(base, people, gold)
    assert isinstance(annotator, Annotator)
    found = list(annotator.annotate(people[:3]))
    assert [a.id for a in found] == ["0", "1", "2"]
    assert [a.tasks[0] for a in found] == ["CRE", "DBG", "TRA"]
    table = indicator(gold, annotator.codes["tasks"], "tasks")
    assert table.sum() == 24
    assert main_labels(table, annotator.codes["tasks"])[:3] == ["CRE", "DBG", "TRA"]


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=12)
    left_out = [np.delete(values, i).mean() for i in range(12)]
    low, high = jackknife(left_out, values.mean())
    assert (high - low) / 2 == pytest.approx(2.200985 * values.std(ddof=1) / 12**0.5, rel=1e-5)
    with pytest.raises(TenfoldError, match="three groups"):
        jackknife([1.0, 2.0], 1.5)


def test_the_draws_of_a_divergence_lie_about_its_value_and_not_above_it():
    rng = np.random.default_rng(3)
    names = [str(i) for i in range(40)]
    first, second = (labelled(one_hot(rng.choice(3, 40)), names, "abc", unit="items", seed=s) for s in range(2))
    found = divergence(first, second)
    inflated = jensen_shannon(first.draws, second.draws).mean()
    assert inflated > 1.5 * found.value  # resampling adds noise, and noise only adds to a divergence
    assert found.draws.mean() == pytest.approx(found.value, abs=1e-12)


def test_an_items_own_label_does_not_reach_its_cross_fitted_prediction():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(0, 0.05, (60, 2)), one_hot(rng.integers(0, 2, 60), 2)
    turned = labels.copy()
    turned[7] = 1 - turned[7]
    before, after = cross_fit(scores, labels), cross_fit(scores, turned)
    np.testing.assert_array_equal(after[7], before[7])
    assert (np.abs(after - before).max(axis=1) > 1e-4).sum() > 40  # it does reach the other folds


def test_predictions_that_never_err_count_like_labels():
    # 30 labels with a share of .2 and 90 predictions with one of .6, all right: together (30 x .2 + 90 x .6) / 120.
    gold, predicted = (np.repeat([[1.0], [0.0]], counts, axis=0) for counts in ((6, 24), (54, 36)))
    found = rectified(predicted, [str(i) for i in range(90)], gold, gold, [str(i) for i in range(30)], "a")
    assert found.point[0] == pytest.approx(0.5)


def test_collections_of_benchmarks_weigh_the_same_whatever_their_size():
    few, many = (
        labelled(np.eye(2)[[side] * n], [str(i) for i in range(n)], ("a", "b"), unit="u")
        for side, n in ((0, 3), (1, 90))
    )
    both = balanced([few, many])
    assert both.point == pytest.approx([0.5, 0.5])
    assert both.draws.mean(axis=0) == pytest.approx([0.5, 0.5])
    assert both.n == "3 u and 90 u"
    codes, label = ("QAN", "SUM", "OTH"), {"few": ("QAN", "SUM"), "many": ("OTH",)}
    rows = {
        name: [GoldLabel(f"{name}/{i}", "TEC", label[name]) for i in range(n)] for name, n in (("few", 3), ("many", 30))
    }
    together = of_collections(rows, "tasks", codes)
    assert together.point == pytest.approx([0.25, 0.25, 0.5])  # an item's labels share one vote
    assert together.n == "3 families of few and 30 families of many"
    assert of_collections(rows, "tasks", codes, each=np.asarray).point == pytest.approx([0.5, 0.5, 0.5])
