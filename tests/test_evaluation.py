"""Metrics under every change that must, or must not, alter them; thresholds; results files that lie."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from numpy.testing import assert_allclose

from vae_notes.evaluation import (Tail, auc_pr, auc_roc, crps_samples, data_hash, fit_tail, interval_coverage, paired_bootstrap,
                                  plot_results, quantile_threshold, read_result, results_table, save_result, soft_labels,
                                  tail_threshold, vus_pr)

settings.register_profile("evaluation", max_examples=50, deadline=None, derandomize=True)
settings.load_profile("evaluation")
seeds = st.integers(0, 2**32)

METRICS = {"auc_roc": auc_roc, "auc_pr": auc_pr, "vus_pr": lambda y, s: vus_pr(y, s, 7)}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def case(seed: int, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Labels in runs, scores that know something of them, with ties."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(n, bool)
    for start in rng.integers(0, n, rng.integers(1, 5)): labels[start:start + rng.integers(1, 15)] = True
    labels[rng.integers(n)] = False
    labels[rng.integers(n)] = True
    return labels, (rng.normal(size=n) + labels * rng.normal()).round(1)


# --- what every ranking metric must satisfy ---

@every_metric
@given(seeds)
def test_only_the_order_of_the_scores_counts(metric, seed):
    labels, scores = case(seed)
    assume(labels.any() and not labels.all())
    value = metric(labels, scores)
    for f in (np.exp, lambda s: 3 * s - 7, np.arctan, lambda s: np.unique(s, return_inverse=True)[1]):
        assert_allclose(metric(labels, f(scores)), value)


@every_metric
@given(seeds)
def test_canaries_land_where_they_should(metric, seed):
    labels, scores = case(seed)
    assume(labels.any() and not labels.all())
    assert_allclose(metric(labels, labels.astype(float)), 1)
    assert 0 <= metric(labels, scores) <= 1 + 1e-12
    assert metric(labels, -labels.astype(float)) < metric(labels, labels)
    constant = metric(labels, np.zeros(len(labels)))
    wanted = {"auc_roc": .5, "auc_pr": labels.mean()}
    for name, value in wanted.items():
        if metric is METRICS[name]: assert_allclose(constant, value)


@every_metric
def test_shuffled_scores_are_worth_as_much_as_none(metric):
    labels = np.arange(5000) % 500 >= 450
    shuffled = np.random.default_rng(0).permutation(labels.astype(float))
    assert abs(metric(labels, shuffled) - metric(labels, np.zeros(5000))) < .03


@every_metric
@given(seeds)
def test_time_may_run_backwards(metric, seed):
    labels, scores = case(seed)
    assume(labels.any() and not labels.all())
    assert_allclose(metric(labels[::-1], scores[::-1]), metric(labels, scores))


@given(seeds)
def test_metrics_of_points_do_not_know_their_order(seed):
    labels, scores = case(seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    for metric in (auc_roc, auc_pr): assert_allclose(metric(labels[order], scores[order]), metric(labels, scores))


@given(seeds)
def test_turning_the_scores_turns_the_area(seed):
    labels, scores = case(seed)
    assert_allclose(auc_roc(labels, -scores), 1 - auc_roc(labels, scores))
    assert_allclose(auc_roc(~labels, scores), 1 - auc_roc(labels, scores))


@given(seeds)
def test_areas_equal_those_of_scikit_learn(seed):
    from sklearn.metrics import average_precision_score, roc_auc_score
    labels, scores = case(seed)
    assert_allclose(auc_roc(labels, scores), roc_auc_score(labels, scores))
    assert_allclose(auc_pr(labels, scores), average_precision_score(labels, scores))


def test_infinite_scores_are_scores():
    labels, scores = np.array([1, 1, 0, 0]), np.array([np.inf, 3., 2., -np.inf])
    assert auc_roc(labels, scores) == auc_pr(labels, scores) == vus_pr(labels, scores, 0) == 1
    assert auc_roc([1, 0], [np.inf, np.inf]) == .5 and auc_pr([1, 0], [np.inf, np.inf]) == .5


def test_tensors_lists_and_arrays_are_the_same():
    labels, scores = case(3)
    for metric in METRICS.values():
        value = metric(labels, scores)
        assert metric(labels.tolist(), scores.tolist()) == value
        assert metric(torch.tensor(labels), torch.tensor(scores, requires_grad=True)) == value


BAD = {
    "NaN": (([0, 1], [0., math.nan]), "scores: .*NaN"),
    "lengths": (([0, 1], [0., 1., 2.]), "scores: expected 2"),
    "one class": (([0, 0], [0., 1.]), "labels: expected both"),
    "nothing": (([], []), "labels: expected both"),
    "other labels": (([0, 2], [0., 1.]), "labels: expected 0 and 1"),
    "two dimensions": (([[0, 1]], [0., 1.]), r"labels: expected shape \(n,\)"),
    "words": ((["a", "b"], [0., 1.]), "labels: expected numbers"),
}


@every_metric
@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(metric, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message): metric(*arguments)


# --- volume under the surface ---

def slow_volume(labels, scores, buffer, thresholds):
    """The definition, by loops over buffers, anomalies and thresholds: nothing shared with the package."""
    n, volume = len(labels), 0.
    runs, inside = [], False
    for i, y in enumerate(labels):
        if y and not inside: runs.append([i, i])
        if y: runs[-1][1] = i
        inside = bool(y)
    for width in range(buffer + 1):
        half, soft = width // 2, np.array(labels, float)
        for a, b in runs:
            for d in range(1, half + 1):
                for t in (a - d, b + d):
                    if 0 <= t < n: soft[t] += math.sqrt(1 - d / width)
        soft = np.minimum(soft, 1)
        groups = [list(runs[0])]
        for a, b in runs[1:]:
            if groups[-1][1] + half >= a - half: groups[-1][1] = b
            else: groups.append([a, b])
        recall = 0.
        for threshold in thresholds:
            call = scores >= threshold
            touched = np.mean([call[max(a - half, 0):b + half + 1].any() for a, b in groups])
            hit = (soft * call).sum()
            outside = (soft * call * ~labels).sum()
            now = touched * min(1, hit / (labels.sum() + outside / 2))
            volume += (now - recall) * hit / call.sum()
            recall = now
    return volume / (buffer + 1)


@given(seeds, st.integers(0, 30))
def test_volume_follows_its_definition(seed, buffer):
    labels, scores = case(seed)
    assume(labels.any() and not labels.all())
    assert_allclose(vus_pr(labels, scores, buffer), slow_volume(labels, scores, buffer, np.unique(scores)[::-1]))


@pytest.mark.parametrize("seed, n, runs, buffer, count, known", [
    (0, 200, [(40, 55), (120, 130)], 10, 50, .657318866508),
    (1, 300, [(50, 60), (150, 180), (250, 255)], 20, 100, .720301443269)])
def test_the_definition_is_that_of_the_reference_implementation(seed, n, runs, buffer, count, known):
    """`known` was computed by others with the reference implementation, which looks at `count` thresholds only."""
    rng, labels = np.random.RandomState(seed), np.zeros(n, bool)
    for a, b in runs: labels[a:b + 1] = True
    scores = rng.rand(n)
    scores[labels] += .5
    thresholds = -np.sort(-scores)[np.linspace(0, n - 1, count).astype(int)]
    assert_allclose(slow_volume(labels, scores, buffer, thresholds), known, rtol=1e-9)
    assert abs(vus_pr(labels, scores, buffer) - known) < .02


def test_without_buffer_and_alone_the_volume_is_the_area():
    labels = np.zeros(50, bool)
    labels[20:25] = True  # one anomaly, its points called one after the other
    scores = np.random.default_rng(1).random(50)
    assert_allclose(vus_pr(labels, scores, 0), auc_pr(labels, scores))


def test_soft_labels_slope_and_overlap():
    assert_allclose(soft_labels([0, 0, 1, 0, 0], 0), [0, 0, 1, 0, 0])
    assert_allclose(soft_labels([0, 0, 1, 0, 0], 1), [0, 0, 1, 0, 0])
    assert_allclose(soft_labels([1, 0, 0, 0, 0, 0, 0], 6), [1, *(1 - np.arange(1, 4) / 6)**.5, 0, 0, 0])
    assert_allclose(soft_labels([1, 0, 1, 0, 0, 0, 0], 6)[3:], [1, (1 - 2 / 6)**.5, (1 - 3 / 6)**.5, 0])
    assert_allclose(soft_labels([0, 0, 0], 4), 0)


@pytest.mark.parametrize("buffer", [-1, 2.5, None])
def test_a_bad_buffer_is_named(buffer):
    with pytest.raises(ValueError, match="buffer: expected"): vus_pr([0, 1], [0, 1], buffer)


# --- bootstrap ---

@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30), st.floats(-5, 5), seeds)
def test_the_interval_moves_and_turns_with_the_scores(a, shift, seed):
    first = paired_bootstrap(a, n=200, seed=seed)
    moved = paired_bootstrap(np.add(a, shift), n=200, seed=seed)
    turned = paired_bootstrap(np.zeros(len(a)), a, n=200, seed=seed)
    assert first.low - 1e-9 <= first.mean <= first.high + 1e-9 or np.std(a) > 0
    assert_allclose(moved, np.add(first, shift), atol=1e-9)
    assert_allclose(turned, [-first.mean, -first.high, -first.low], atol=1e-9)


def test_many_units_come_near_the_normal_interval_and_small_memory_is_enough():
    a = np.random.default_rng(0).normal(size=100_000)
    mean, low, high = paired_bootstrap(a, n=500)
    assert_allclose([low, high], a.mean() + np.array([-1.96, 1.96]) * a.std() / len(a)**.5, atol=4e-4)


def test_parts_make_no_difference_to_what_is_drawn(monkeypatch):
    a = np.random.default_rng(0).normal(size=3000)
    assert_allclose(paired_bootstrap(a, n=3000)[1:], np.array([-1.96, 1.96]) * a.std() / 3000**.5 + a.mean(), rtol=.1, atol=3e-3)


@pytest.mark.parametrize("a, b, message", [
    ([1.], 0., "a: expected ≥ 2 units"), ([1., 2.], [1.], "b: expected 2 units"), ([1., math.nan], 0., "a: .*NaN"),
    ([1., math.inf], 0., "infinity"), ([[1., 2.]], 0., r"a: expected shape"), ("ab", 0., "a: expected numbers")])
def test_bad_units_are_named(a, b, message):
    with pytest.raises((ValueError, TypeError), match=message): paired_bootstrap(a, b)


# --- thresholds ---

@given(seeds, st.integers(5, 200), st.floats(.01, .9))
def test_a_quantile_lets_through_no_more_than_promised(seed, n, rate):
    assume(rate * (n + 1) >= 1)
    scores = np.random.default_rng(seed).normal(size=n)
    threshold = quantile_threshold(scores, rate)
    assert threshold in scores
    assert ((scores >= threshold).sum()) / (n + 1) <= rate + 1e-9 < ((scores >= threshold).sum() + 1) / (n + 1) + 1e-6


@given(seeds, st.floats(.1, 50), st.floats(-20, 20))
def test_thresholds_follow_a_change_of_unit(seed, scale, shift):
    scores = np.random.default_rng(seed).gumbel(size=400)
    for f in (lambda s: quantile_threshold(s, .02), lambda s: tail_threshold(s, .001)):
        assert_allclose(f(scale * scores + shift), scale * f(scores) + shift, rtol=1e-6, atol=1e-6)


@given(st.floats(-.9, .9), st.floats(.1, 10), st.floats(-5, 5), st.floats(.001, 1))
def test_a_tail_is_its_own_inverse(shape, scale, start, ratio):
    tail = Tail(start, .2, scale, shape)
    t = tail.threshold(.2 * ratio)
    assert t >= start
    assert_allclose(tail.survival(t), .2 * ratio, rtol=1e-6)


def test_a_tail_near_shape_zero_is_continuous():
    t = [Tail(0., .1, 1., xi).threshold(1e-4) for xi in (-1e-7, -1e-10, 0., 1e-10, 1e-7)]
    assert_allclose(t, math.log(1000), rtol=1e-5)
    s = [Tail(0., .1, 1., xi).survival(5.) for xi in (-1e-7, -1e-10, 0., 1e-10, 1e-7)]
    assert_allclose(s, .1 * math.exp(-5), rtol=1e-5)


def test_beyond_the_end_of_a_short_tail_there_is_nothing():
    tail = Tail(0., .1, 1., -.5)  # ends at 2
    assert tail.survival(1.999) > 0 and tail.survival(2.) == tail.survival(5.) == 0
    assert tail.survival([-3., 0.]).tolist() == [.1, .1]


@given(seeds, st.integers(20, 40))
def test_a_tail_follows_the_means_of_all_pairs(seed, k):
    scores = np.random.default_rng(seed).exponential(size=2 * k)
    s = np.sort(scores)
    y = s[k:] - s[k - 1]
    m1, m2 = y.mean(), np.minimum(y[:, None], y)[~np.eye(k, dtype=bool)].mean()
    shape = 2 - m1 / (m1 - m2)
    assert_allclose(fit_tail(scores, .5), [s[k - 1], .5, (1 - shape) * m1, shape])


@pytest.mark.parametrize("f", [lambda: quantile_threshold([1, 2, 3], 0.), lambda: quantile_threshold([1, 2, 3], 1.),
                               lambda: quantile_threshold([1, 2, 3], math.nan), lambda: quantile_threshold([1., 2.], .1),
                               lambda: tail_threshold(range(300), .5), lambda: tail_threshold(range(300), 0.)])
def test_a_bad_rate_is_named(f):
    with pytest.raises(ValueError, match="rate: expected"): f()


@pytest.mark.parametrize("scores, share, message", [
    (range(19), .9, "scores: expected ≥ 23"), (np.ones(300), .1, "spread"), ([*range(280)] + [math.inf] * 20, .1, "finite"),
    (range(300), 0., "share: expected"), (range(300), 1., "share: expected")])
def test_a_tail_that_cannot_be_fitted_is_refused(scores, share, message):
    with pytest.raises(ValueError, match=message): fit_tail(scores, share)


# --- samples ---

@given(seeds, st.integers(2, 12), st.floats(.1, 5), st.floats(-5, 5))
def test_the_score_of_samples_is_that_of_all_pairs(seed, m, scale, shift):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(m, 3, 2, generator=g).double(), torch.randn(3, 2, generator=g).double()
    pairs = (x[:, None] - x).abs().sum((0, 1)) / (m * (m - 1))
    value = crps_samples(x, y)
    torch.testing.assert_close(value, (x - y).abs().mean(0) - pairs / 2)
    torch.testing.assert_close(crps_samples(x.flip(0), y), value)
    torch.testing.assert_close(crps_samples(scale * x + shift, scale * y + shift), scale * value)
    torch.testing.assert_close(crps_samples(-x, -y), value)


@pytest.mark.parametrize("m, level", [(19, .9), (39, .95), (9, .8), (99, .9)])
def test_intervals_hold_as_often_as_they_say(m, level):
    g = torch.Generator().manual_seed(m)
    x, y = torch.randn(m, 20_000, generator=g).exp(), torch.randn(20_000, generator=g).exp()
    inside = interval_coverage(x, y, level)
    assert set(inside.unique().tolist()) == {0., 1.}
    assert abs(inside.mean().item() - level) < 4 * (level * (1 - level) / 20_000)**.5


@pytest.mark.parametrize("f", [crps_samples, interval_coverage])
@pytest.mark.parametrize("samples, y, error", [
    (torch.zeros(5, 2), torch.zeros(3), ValueError), (torch.zeros(1, 3), torch.zeros(3), ValueError),
    (np.zeros((5, 3)), torch.zeros(3), TypeError), (torch.zeros(5, 3), [0.] * 3, TypeError), (torch.tensor(1.), torch.tensor(1.), ValueError)])
def test_samples_that_do_not_fit_are_named(f, samples, y, error):
    with pytest.raises(error, match="samples|y: expected"): f(samples, y)


# --- results files ---

UNITS = ["a", "b", "c", "d"]
SCORES = {"model": [[.5, .6, .7, .8], [.6, .6, .7, .9]], "simple": [.4, .5, .6, .7], "twin": [.55, .6, .7, .85]}
ABOUT = dict(metric="AUC", higher_is_better=True, units=UNITS, model="model", seeds=(0, 1), config={"lr": .1, "width": 3})


def write(folder, scores=SCORES, task="t", **changed):
    return save_result(task, scores, folder=folder, **{**ABOUT, **changed})


def test_a_result_comes_back(tmp_path):
    path = write(tmp_path / "new" / "folder", data=[np.arange(3), torch.ones(2)], seconds=1.5, command="make", note="n")
    got = read_result("t", tmp_path / "new" / "folder")
    assert path.name == "t.json" and got["scores"]["simple"] == [SCORES["simple"]]
    assert got["units"] == UNITS and got["seeds"] == [0, 1] and got["config"] == ABOUT["config"]
    assert (got["seconds"], got["command"], got["note"]) == (1.5, "make", "n")
    assert got["data_hash"] == data_hash([np.arange(3), torch.ones(2)])
    assert set(got["versions"]) == {"python", "torch", "numpy"} and len(got["made"]) == 10
    assert [p.name for p in path.parent.iterdir()] == ["t.json"]


def test_tensors_and_arrays_are_scores(tmp_path):
    write(tmp_path, {"model": torch.tensor(SCORES["model"], requires_grad=True), "simple": np.array(SCORES["simple"])})
    assert_allclose(read_result("t", tmp_path)["scores"]["model"], SCORES["model"], rtol=1e-6)


def test_verdicts(tmp_path):
    write(tmp_path)
    table = results_table("t", tmp_path)
    assert table.index.tolist() == [*SCORES]
    assert table.columns.tolist() == ["mean", "lead", "low", "high", "verdict"]
    assert table.verdict.tolist() == ["—", "better", "no difference"]
    assert_allclose(table["mean"], [.675, .55, .675])
    assert_allclose(table.loc["simple", "lead"], .125)
    write(tmp_path, higher_is_better=False)
    table = results_table("t", tmp_path)
    assert table.verdict.tolist() == ["—", "worse", "no difference"] and table.loc["simple", "lead"] < 0


def test_one_unit_has_no_interval(tmp_path):
    write(tmp_path, {"model": [.5], "simple": [.4]}, units=["only"], seeds=(0,))
    row = results_table("t", tmp_path).loc["simple"]
    assert row.verdict == "one unit only" and math.isnan(row.low) and row.lead == pytest.approx(.1)
    plot_results("t", tmp_path)


def test_the_picture_has_a_line_for_each_row(tmp_path):
    import matplotlib.pyplot as plt
    write(tmp_path)
    _, axes = plot_results("t", tmp_path)
    assert [t.get_text() for t in axes[0].get_yticklabels()] == [*SCORES]
    assert "model" in axes[1].get_xlabel() and axes[0].get_xlabel() == "AUC"
    plt.close("all")


WRONG = {
    "task": dict(task="T x"), "task: expected lower": dict(task="../t"), "task: .*digits": dict(task="t x"), "metric": dict(metric=""), "metric: expected str": dict(metric=3),
    "higher_is_better": dict(higher_is_better=1), "units: expected each once": dict(units=["a", "a", "c", "d"]),
    "units: expected one or more str": dict(units=[1, 2, 3, 4]), "units: expected one": dict(units=[]),
    "scores: .*seeds by units": dict(units=["a"]), r"scores: expected \(4,\) or \(3, 4\)": dict(seeds=(0, 1, 2)),
    "seeds: expected each once": dict(seeds=(1, 1)), "model: expected a row": dict(model="other"),
    "scores: .*row 'simple', unit 'c'": dict(scores={**SCORES, "simple": [1, 2, math.nan, 4]}),
    "scores: expected finite": dict(scores={**SCORES, "simple": [1, 2, math.inf, 4]}),
    "scores: expected numbers in row 'x'": dict(scores={**SCORES, "x": [[1, 2], [3]]}), "config: expected": dict(config={"x": {1, 2}}),
    "config": dict(config={"x": math.nan}), "seconds: expected": dict(seconds=-1.), "seconds": dict(seconds=math.nan),
    "command: expected str": dict(command=None),
}


@pytest.mark.parametrize("message, changed", WRONG.items(), ids=WRONG.keys())
def test_a_bad_result_is_refused_and_nothing_written(tmp_path, message, changed):
    with pytest.raises((ValueError, TypeError), match=message): write(tmp_path, **changed)
    assert not any(tmp_path.rglob("*.json"))


def test_an_old_file_survives_a_failed_write(tmp_path):
    before = write(tmp_path).read_text()
    with pytest.raises(ValueError): write(tmp_path, model="other")
    assert (tmp_path / "t.json").read_text() == before


ALTERED = {
    "config": lambda r: r["config"].update(lr=1.), "task": lambda r: r.update(task="other"),
    "a score lost": lambda r: r["scores"]["simple"][0].pop(), "a unit renamed": lambda r: r["units"].__setitem__(0, "b"),
    "a field lost": lambda r: r.pop("units"), "a row lost": lambda r: r["scores"].pop("model"),
    "a null": lambda r: r["scores"]["simple"][0].__setitem__(0, None), "a word": lambda r: r["scores"].update(simple="many")}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED.keys())
def test_an_altered_file_is_found_out(tmp_path, alter):
    path = write(tmp_path)
    record = json.loads(path.read_text())
    alter(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="t.json"): read_result("t", tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "{}", "null", "\x00"])
def test_what_is_no_result_file_is_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match="no result file"): read_result("t", tmp_path)


def test_every_change_of_data_changes_its_hash():
    x = np.arange(6.)
    others = [x.astype("f4"), x.reshape(2, 3), x[::-1], x + 1e-12, [x, x], x[:5]]
    assert len({data_hash(x), *map(data_hash, others)}) == 7
    assert data_hash(np.asfortranarray(x.reshape(2, 3))) == data_hash(x.reshape(2, 3))
    assert data_hash(torch.tensor(x, requires_grad=True)) == data_hash(x)


def test_the_package_needs_neither_scikit_learn_nor_scipy():
    code = ("import sys; sys.modules['sklearn'] = sys.modules['scipy'] = None; from vae_notes.evaluation import *; "
            "print(auc_roc([0, 1], [0, 1]), auc_pr([0, 1], [0, 1]), vus_pr([0, 1], [0, 1], 1), tail_threshold(range(300), .01) > 0)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["1.0", "1.0", "1.0", "True"]
