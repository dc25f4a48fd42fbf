"""Planted anomalies, point scores and the frozen recipe, where the chapter does not look."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close

from vae_notes.core import generator
from vae_notes.data import Standardize, leaks, windows
from vae_notes.evaluation import auc_roc
from vae_notes.files import load, save
from vae_notes.series_anomalies import (KINDS, SeriesAnomalyScorer, WindowJudge, autocorrelation, find_period, fit_judge,
                                        plant_anomalies, point_scores, summaries)

settings.register_profile("anomalies", max_examples=30, deadline=None, derandomize=True)
settings.load_profile("anomalies")
seeds = st.integers(0, 2**32)


def wave(n: int = 900, period: int = 24, seed: int = 0, noise: float = .1) -> torch.Tensor:
    t = torch.arange(n) * (2 * math.pi / period)
    return 20 + 3 * t.sin() + noise * torch.randn(n, generator=generator(seed))


@pytest.fixture(scope="module")
def scorer(): return SeriesAnomalyScorer.learn(wave(), steps=40)


# --- planting ---

@given(seeds, st.integers(1, 8), st.sampled_from([8, 24, 60]), st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
def test_what_is_planted_is_where_the_labels_say(seed, n, period, kinds):
    x, start = wave(1000, seed=seed), 400
    before = x.clone()
    p = plant_anomalies(x, start, period, n, kinds, seed=seed)
    assert torch.equal(x, before), "the input was changed"
    assert torch.equal(p.values[~p.labels], x[~p.labels]) and not p.labels[:start].any()
    assert len(p.kinds) == n and {k for k, _, _ in p.kinds} <= set(kinds)
    marked = torch.zeros(1000, dtype=torch.bool)
    for (kind, a, b), slot in zip(p.kinds, range(n)):
        marked[a:b] = True
        assert start + slot * 600 // n - 1 <= a < b <= start + (slot + 1) * 600 // n + 1
        assert b - a <= (3 if kind == "spike" else max(4, .8 * period))
        assert kind in ("flat", "missing") or not torch.equal(p.values[a:b], x[a:b]) or b - a < 3
    assert torch.equal(marked, p.labels) and p.values.isfinite().all() and p.values.dtype == x.dtype
    again = plant_anomalies(x, start, period, n, kinds, seed=seed)
    assert torch.equal(again.values, p.values) and again.kinds == p.kinds


def test_each_kind_does_what_its_name_says():
    x, start = wave(4000), 2000
    for kind in KINDS:
        p = plant_anomalies(x, start, 24, 10, [kind], seed=2)
        for _, a, b in p.kinds:
            old, new = x[a:b], p.values[a:b]
            if kind == "spike": assert ((new - old).abs() >= 4 * x[:start].diff().std() - 1e-4).all() and b - a <= 3
            if kind == "shift": assert_close(new - old, (new - old)[:1].expand(b - a)); assert (new - old).abs().min() > .7 * x[:start].std()
            if kind == "flat": assert (new == x[a]).all()
            if kind == "missing": assert (new == x[:start].min()).all()
            if kind == "phase": assert any(torch.equal(new, x[a - k:b - k]) for k in range(6, 13))
            if kind == "reverse": assert torch.equal(new, old.flip(0))
            if kind == "damped": assert_close(new.std(), .5 * old.std()); assert_close(new.mean(), old.mean())
            if kind == "drift": assert (new - old)[0].abs() < 1e-5 and (new - old)[-1].abs() > .9 * x[:start].std()
            if kind == "noise" and b - a > 8: assert (new - old).std() > .2 * x[:start].std()
    big, small = (plant_anomalies(x, start, 24, 5, ["shift"], size=s, seed=2) for s in (2., 1.))
    assert_close(big.values - x, 2 * (small.values - x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change, message", [
    (dict(kinds=["hail"]), "kinds: expected"), (dict(kinds=[]), "kinds"), (dict(n=0), "n, kinds"), (dict(start=990), "start: expected"),
    (dict(start=10), "start: expected"), (dict(period=1), "start: expected period"), (dict(n=200), "start: expected"),
    (dict(series=torch.zeros(5, 5)), "series: expected shape"), (dict(series=torch.full((1000,), math.nan)), "series: .*NaN")])
def test_a_plan_that_does_not_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message): plant_anomalies(**{**dict(series=wave(1000), start=500, period=24), **change})


# --- points, summaries, periods ---

@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 5))
def test_points_take_the_mean_of_their_windows(seed, length, stride, n, rest):
    stride = min(stride, length)
    scores = torch.randn(n, generator=generator(seed))
    total = (n - 1) * stride + length + min(rest, stride - 1)
    points = point_scores(scores, length, stride, total)
    for t in range(total):
        over = [s for i, s in enumerate(scores.tolist()) if i * stride <= t < i * stride + length] or [scores[-1].item()]
        if over == [scores[-1].item()] and t >= (n - 1) * stride + length: assert points[t] == points[(n - 1) * stride + length - 1]
        else: assert abs(points[t].item() - sum(over) / len(over)) < 1e-5


@given(seeds, st.integers(3, 20))
def test_summaries_of_a_window_know_no_other_window(seed, length):
    w = torch.randn(5, length, generator=generator(seed))
    s = summaries(w)
    assert s.shape == (5, 7) and s.isfinite().all()
    assert torch.equal(summaries(w[2:3]), s[2:3])
    moved = summaries(w + 3)
    assert_close(moved - s, torch.tensor([3., 0, 0, 3, 3, 0, 0]).expand(5, 7), atol=1e-4, rtol=1e-4)
    back = summaries(w.flip(1))
    assert_close(back * torch.tensor([1., 1, 1, 1, 1, -1, 1]), s, atol=1e-5, rtol=1e-4)


def test_a_constant_window_has_finite_summaries():
    assert summaries(torch.ones(2, 10)).isfinite().all()


@given(seeds, st.sampled_from([12, 24, 37, 60]), st.floats(-3, 3), st.floats(.1, 100))
def test_a_period_is_found_whatever_trend_and_unit(seed, period, trend, unit):
    n = 20 * period
    x = wave(n, period, seed, noise=.5) + trend * torch.linspace(0, 5, n)
    assert abs(find_period(unit * x) - period) <= 1


def test_noise_has_no_period_and_correlation_starts_at_one():
    assert find_period(torch.randn(3000, generator=generator(1))) is None
    assert find_period(torch.zeros(100)) is None
    r = autocorrelation(wave())
    assert r[0] == 1 and r.abs().max() <= 1 + 1e-9


# --- the recipe ---

def test_a_scorer_comes_back_from_its_file(scorer, tmp_path):
    save(scorer, tmp_path / "s.safetensors")
    back, x = load(tmp_path / "s.safetensors"), wave(200, seed=3)
    assert torch.equal(back.score(x), scorer.score(x))
    judge = scorer.judges[0]
    save(judge, tmp_path / "j.safetensors")
    w = windows(scorer.scale(x), judge.length, 2)
    assert torch.equal(load(tmp_path / "j.safetensors").opinions(w), judge.opinions(w))


def test_scores_have_the_length_of_the_series_and_leave_no_trace(scorer):
    before = torch.get_rng_state()
    for n in (24, 25, 100, 333):
        s = scorer.score(wave(n, seed=n))
        assert s.shape == (n,) and s.isfinite().all() and not s.requires_grad
    assert torch.equal(before, torch.get_rng_state())


def test_one_seed_one_result_and_the_global_generator_is_left_alone():
    x = wave(500)
    before = torch.get_rng_state()
    a, b, c = (SeriesAnomalyScorer.learn(x, seed=seed, steps=20).score(x) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_what_comes_later_changes_nothing_of_what_is_learned():
    x = wave(700)
    assert not leaks(lambda x: SeriesAnomalyScorer.learn(x[:500], steps=10), x, torch.arange(500, 700))


def test_a_window_is_judged_alike_in_any_company(scorer):
    judge = scorer.judges[0]
    w = windows(scorer.scale(wave(3000, seed=5)), judge.length, 1)
    whole = judge.opinions(w)
    assert whole.shape == (len(w), 3)
    assert_close(torch.cat([judge.opinions(w[:7]), judge.opinions(w[7:])]), whole, rtol=1e-3, atol=1e-3)


def test_the_level_is_kept(scorer):
    x = wave(200, seed=4)
    assert scorer.score(x + 15).min() > scorer.score(x).max() + 1


def test_planted_anomalies_score_higher_and_normal_data_near_its_calibration(scorer):
    p = plant_anomalies(wave(3000, seed=6), 500, 24, 12, seed=1)
    assert auc_roc(p.labels, scorer.score(p.values)) > .85
    assert scorer.score(wave(2000, seed=8)).median() < .5


def test_the_score_adds_the_logarithms_of_all_opinions(scorer):
    x = wave(300, seed=9)
    o = scorer.opinions(x)
    assert o.shape == (300, 6) and (o >= 0).all()
    assert_close(scorer.score(x), (o + .1).prod(1).log(), rtol=1e-4, atol=1e-4)
    one = scorer.judges[1]
    each = one.opinions(windows(scorer.scale(x), one.length, 1))
    assert_close(o[:, 5], point_scores(each[:, 2], one.length, 1, 300))


def test_the_plane_is_the_principal_one_of_what_was_learned():
    w = windows(torch.randn(1500, generator=generator(3)).cumsum(0) / 30, 12, 3)
    judge = fit_judge(w, 4, steps=0)
    x = judge.describe(w[:int(.7 * len(w))])[:, :-7]
    centred = x - x.mean(0)
    assert judge.plane.shape == (4, 12)
    assert_close(judge.plane @ judge.plane.T, torch.eye(4), atol=1e-5, rtol=0)
    left = (centred - centred @ judge.plane.T @ judge.plane).square().sum()
    assert_close(left, torch.linalg.eigvalsh(centred.T @ centred)[:-4].sum(), rtol=1e-2, atol=1e-6)
    e = judge._unlike(w[:5])[:, 2]
    assert_close(e, (centred[:5] - centred[:5] @ judge.plane.T @ judge.plane).square().sum(1), rtol=1e-3, atol=1e-6)

@pytest.mark.parametrize("period, lengths", [(24, [24, 8]), (48, [48, 12]), (8, [8]), (4, [8]), (None, [24, 8])])
def test_lengths_follow_the_period(period, lengths):
    s = SeriesAnomalyScorer.learn(wave(600), period=period, steps=1)
    assert [j.length for j in s.judges] == lengths


def test_long_windows_are_averaged_down():
    x = wave(3000, 288)
    s = SeriesAnomalyScorer.learn(x, steps=5)
    assert abs(s.judges[0].length - 288) <= 3 and s.judges[0].describe(torch.zeros(2, s.judges[0].length)).shape == (2, 71)
    assert s.score(x).shape == x.shape


def test_points_and_summaries_weigh_the_same():
    judge = WindowJudge(200, 3)
    d = judge.describe(torch.ones(1, 200))
    assert_close(d[:, :64].square().sum(), torch.tensor(7.))


def test_no_more_than_two_thousand_windows_are_remembered():
    w = windows(torch.randn(4100, generator=generator(0)), 8, 1)
    judge = fit_judge(w, 8, steps=0)
    assert 1000 < judge.n_reference <= 2000 and judge.reference.shape == (judge.n_reference, 7)


def test_calibration_is_on_windows_not_trained_on():
    w = windows(torch.randn(2000, generator=generator(0)), 16, 4)
    judge = fit_judge(w, 4, steps=30)
    share = (judge.opinions(w[int(.7 * len(w)) + 4:]) <= 1).float().mean(0)
    assert (share >= .94).all() and share[0] < .97 and share[2] < .97


@pytest.mark.parametrize("f, error, message", [
    (lambda: SeriesAnomalyScorer.learn(torch.zeros(200)), ValueError, "train: is constant"),
    (lambda: SeriesAnomalyScorer.learn(wave(50)), ValueError, "train: expected ≥ 64"),
    (lambda: SeriesAnomalyScorer.learn(wave(100), period=13), ValueError, "period: expected to fit eight"),
    (lambda: SeriesAnomalyScorer.learn(wave(100), period=3), ValueError, "period: expected ≥ 4"),
    (lambda: SeriesAnomalyScorer.learn(wave(100), period=8.), TypeError, "period: expected a whole"),
    (lambda: SeriesAnomalyScorer.learn([1.] * 100), TypeError, "train: expected a torch.Tensor"),
    (lambda: SeriesAnomalyScorer.learn(wave(100) / 0), ValueError, "train: expected finite"),
    (lambda: SeriesAnomalyScorer.learn(wave(100)[:, None]), ValueError, "train: expected shape"),
    (lambda: SeriesAnomalyScorer(torch.nn.Identity(), torch.nn.ModuleList()), TypeError, "scale: expected a Standardize"),
    (lambda: SeriesAnomalyScorer(Standardize(torch.tensor(0.), torch.tensor(1.)), torch.nn.ModuleList()), TypeError, "judges"),
    (lambda: WindowJudge(3, 5), ValueError, "length: expected ≥ 4"), (lambda: WindowJudge(8., 5), TypeError, "length: expected a whole"),
    (lambda: WindowJudge(8, 0), ValueError, "n_reference: expected ≥ 1")])
def test_bad_input_is_named(f, error, message):
    with pytest.raises(error, match=message): f()


@pytest.mark.parametrize("series, message", [
    (torch.full((100,), math.nan), "series: expected finite"), (torch.zeros(10), "length=24"), (torch.zeros(0), "empty")])
def test_series_that_cannot_be_scored_are_named(scorer, series, message):
    with pytest.raises(ValueError, match=message): scorer.score(series)
