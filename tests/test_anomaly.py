"""Chapter 22: what every scorer must hold to, whatever the table."""
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.neighbors import NearestNeighbors

from vae_notes.anomaly import (AnomalyModel, AnomalyScorer, RangeScale,
                               nearest, tail_nats)
from vae_notes.files import FileFormatError, load, save
from vae_notes.vae import VAE, MLPDecoder, MLPEncoder

FEW = dict(steps=20)


def table(n=90, d=4, seed=0):
    g = np.random.default_rng(seed)
    return g.normal(size=(n, 2)) @ g.normal(size=(2, d)) + .3 * g.normal(
        size=(n, d))


@pytest.fixture(scope="module")
def scorer():
    return AnomalyScorer(**FEW).fit(table())


# --- surprise -------------------------------------------------------------

def test_surprise_counts_up_to_the_tail():
    normal = torch.arange(1001.)
    nats = tail_nats(torch.tensor([-5., 0., 500., 900.]), normal)
    expected = [0., 0., math.log(2), math.log(10)]
    torch.testing.assert_close(nats, torch.tensor(expected).double())


def test_surprise_beyond_goes_on_with_the_mean_excess():
    normal = torch.arange(1001.)
    excess = torch.arange(901., 1001.).mean() - 900
    nats = tail_nats(torch.tensor([900. + 3 * excess]), normal)
    assert nats.item() == pytest.approx(math.log(10) + 3)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60),
       st.lists(st.floats(-1e7, 1e7), min_size=2, max_size=20))
@settings(max_examples=150, deadline=None)
def test_surprise_is_finite_and_rises_with_the_score(normal, scores):
    scores = torch.tensor(sorted(scores), dtype=torch.float64)
    nats = tail_nats(scores, torch.tensor(normal, dtype=torch.float64))
    assert nats.isfinite().all() and (nats >= 0).all()
    assert (nats.diff() >= -1e-9).all()


@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
@settings(max_examples=40, deadline=None)
def test_surprise_does_not_know_the_unit(c, shift):
    normal = torch.from_numpy(table(200, 1)[:, 0])
    scores = torch.linspace(-3, 12, 31).double()
    torch.testing.assert_close(tail_nats(c * scores + shift,
                                         c * normal + shift),
                               tail_nats(scores, normal),
                               rtol=1e-4, atol=1e-4)


def test_equal_scores_leave_something_to_say():
    nats = tail_nats(torch.tensor([1., 2., 3.]), torch.ones(50))
    assert nats.isfinite().all() and nats[0] < nats[1] < nats[2]


# --- neighbours and scale -------------------------------------------------

@given(st.integers(6, 40), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_nearest_agrees_with_sklearn(n, d, k):
    rows, x = table(n, d, 1), table(7, d, 2)
    judge = NearestNeighbors(n_neighbors=k).fit(rows).kneighbors(x)[0]
    got = nearest(torch.from_numpy(x), torch.from_numpy(rows), k)
    np.testing.assert_allclose(got, judge.mean(1), rtol=1e-9)


def test_nearest_leaves_out_itself_and_no_twin():
    rows = torch.tensor([[0.], [0.], [3.], [7.]])
    own = nearest(rows, rows, k=1, own=torch.arange(4))
    torch.testing.assert_close(own, torch.tensor([0., 0., 3., 4.]))
    torch.testing.assert_close(nearest(rows[:1], rows, k=9),
                               torch.tensor([2.5]))
    torch.testing.assert_close(
        nearest(rows[:1], rows, k=9, own=torch.tensor([0])),
        torch.tensor([10 / 3]))


def test_range_scale():
    scale = RangeScale(3)
    big = dict(dtype=torch.float64)
    scale.low.copy_(torch.tensor([0., 5., -1e308], **big))
    scale.high.copy_(torch.tensor([2., 5., 1e308], **big))
    x = torch.tensor([[0., 5., 0.], [2., 4.9, 0.], [1e9, 6., 0.]]).double()
    got = scale(x)
    assert got.dtype == torch.float32 and got.isfinite().all()
    torch.testing.assert_close(got[0, :2], torch.tensor([-1.75, 0.]))
    torch.testing.assert_close(got[1, :2], torch.tensor([1.75, -3.5]))
    assert got[2, 0] == 3500 and got[2, 1] == 3.5


# --- the scorer -----------------------------------------------------------

def test_one_row_or_many_one_order_or_another(scorer):
    x = table(40, seed=3)
    nats = scorer.nats(x)
    one = np.concatenate([scorer.nats(row[None]) for row in x])
    np.testing.assert_allclose(one, nats, rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(scorer.nats(x[order]), nats[order],
                               rtol=1e-4, atol=1e-5)


def test_signs_and_line_agree(scorer):
    x = np.r_[table(40, seed=3), 50 + table(5, seed=4)]
    nats = scorer.nats(x)
    assert nats.shape == (45,) and nats.dtype == np.float64
    np.testing.assert_array_equal(scorer.score_samples(x), -nats)
    line = -math.log(scorer.false_alarms)
    np.testing.assert_allclose(scorer.decision_function(x), line - nats)
    np.testing.assert_array_equal(scorer.predict(x),
                                  np.where(nats > line, -1, 1))
    assert (scorer.predict(x)[-5:] == -1).all()


def test_same_seed_same_bits_and_another_seed_others():
    a, b, c = (AnomalyScorer(seed=s, **FEW).fit(table()).nats(table(seed=5))
               for s in (1, 1, 2))
    assert (a == b).all() and not (a == c).all()


def test_global_generators_stay_as_they_were():
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3), np.random.seed(3)
    AnomalyScorer(**FEW).fit(table()).nats(table())
    assert torch.rand(1) == expected[0] and np.random.rand() == expected[1]


def test_rows_of_training_are_scored_by_who_does_not_know_them():
    scorer = AnomalyScorer(**FEW).fit(table(90))
    assert scorer.model_.held.shape == (90, 3)
    assert scorer.model_.held.isfinite().all()
    # in its own neighbours a row would be at distance zero from itself
    assert (scorer.model_.held[:, :2] > 0).all()


def test_false_alarms_are_about_as_stated():
    x = table(4400)
    scorer = AnomalyScorer(false_alarms=.1, **FEW).fit(x[:400])
    flagged = (scorer.predict(x[400:]) == -1).mean()
    assert .05 < flagged < .15


def test_units_of_the_columns_do_not_matter():
    unit = 2. ** np.array([-30, 0, 7, 20])
    x, new = table(), table(seed=5)
    a = AnomalyScorer(**FEW).fit(x).nats(new)
    b = AnomalyScorer(**FEW).fit(x * unit).nats(new * unit)
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_constant_column_any_other_value_is_strange():
    x = np.c_[table(), np.full(90, 7.)]
    scorer = AnomalyScorer(**FEW).fit(x)
    new = x[:1].copy()
    new[0, -1] = 7 + 1e-9
    assert scorer.nats(new) > scorer.nats(x[:1]) + 2


def test_extreme_values_stay_finite(scorer):
    x = np.array([[1e300, -1e300, 0., 0.], [1e-300, 0., 0., 0.]])
    nats = scorer.nats(x)
    assert np.isfinite(nats).all() and nats[0] > 20


@pytest.mark.parametrize("n, d", [(10, 1), (11, 30), (25, 4)])
def test_small_tables(n, d):
    nats = AnomalyScorer(**FEW).fit(table(n, d)).nats(table(8, d, 1))
    assert np.isfinite(nats).all()


def test_more_rows_than_are_kept(monkeypatch):
    scorer = AnomalyScorer(steps=1).fit(table(4200, 2))
    assert scorer.model_.n_rows == 4096
    assert np.isfinite(scorer.nats(table(5, 2, 1))).all()


def test_few_values_and_duplicates():
    x = np.random.default_rng(0).integers(0, 2, (60, 3))
    assert np.isfinite(AnomalyScorer(**FEW).fit(x).nats(x)).all()


def test_kinds_of_input(scorer):
    x = table(6, seed=3)
    nats = scorer.nats(x)
    frame = pd.DataFrame(x, columns=list("abcd"))
    for same in (torch.tensor(x), frame, x.tolist(), x.astype(object)):
        np.testing.assert_array_equal(scorer.nats(same), nats)


@pytest.mark.parametrize("bad, error, text", [
    ([["a"] * 4], TypeError, "expected numbers"),
    (pd.DataFrame({"a": ["x"], "b": 1, "c": 2, "d": 3}), TypeError,
     "expected numbers"),
    (np.zeros((1, 4), complex), TypeError, "expected numbers"),
    ([[1, 2, 3, math.nan]], ValueError, "NaN"),
    ([[1, 2, 3, math.inf]], ValueError, "infinite"),
    (np.ma.masked_equal([[1., 2., 3., 4.]], 2), ValueError, "NaN"),
    (np.zeros((2, 3)), ValueError, r"shape \(any, 4\)"),
    (np.zeros(4), ValueError, "shape"),
    (np.zeros((0, 4)), ValueError, "empty"),
])
def test_bad_rows_are_refused_by_name(scorer, bad, error, text):
    with pytest.raises(error, match=text): scorer.nats(bad)
    with pytest.raises(error, match="X: expected"): scorer.explain(bad)


@pytest.mark.parametrize("setting, error", [
    (dict(false_alarms=0), ValueError), (dict(false_alarms=1.), ValueError),
    (dict(false_alarms="5%"), TypeError), (dict(false_alarms=True), TypeError),
    (dict(members=1), ValueError), (dict(members=2.5), TypeError),
    (dict(steps=-1), ValueError), (dict(steps=True), TypeError),
    (dict(seed=-1), ValueError), (dict(seed=None), TypeError),
])
def test_bad_settings_are_refused_by_name(setting, error):
    with pytest.raises(error, match=f"{next(iter(setting))}: expected"):
        AnomalyScorer(**setting).fit(table())


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="≥ 10 rows, got 9"):
        AnomalyScorer().fit(table(9))
    with pytest.raises(ValueError, match="all rows are alike"):
        AnomalyScorer().fit(np.ones((20, 3)))
    for name in ("nats", "predict", "explain", "score_samples",
                 "decision_function"):
        with pytest.raises(RuntimeError, match="not fitted"):
            getattr(AnomalyScorer(), name)(table())


def test_sklearn_conventions():
    scorer = AnomalyScorer(false_alarms=.1, **FEW)
    twin = clone(scorer)
    assert twin.get_params() == scorer.get_params()
    assert twin.set_params(seed=4) is twin and twin.seed == 4
    with pytest.raises(ValueError, match="unknown settings"):
        twin.set_params(depth=3)
    assert scorer.fit(table(), y=np.ones(90)) is scorer
    assert repr(scorer).startswith("AnomalyScorer(false_alarms=0.1, seed=0")
    assert scorer.__sklearn_is_fitted__() and not twin.__sklearn_is_fitted__()
    assert scorer.__sklearn_tags__().estimator_type == "outlier_detector"


def test_saved_and_loaded(scorer, tmp_path):
    path, x = tmp_path / "a.safetensors", table(9, seed=3)
    scorer.save(path)
    again = AnomalyScorer.load(path)
    assert again.get_params() == scorer.get_params()
    assert (again.nats(x) == scorer.nats(x)).all()
    assert isinstance(load(path), AnomalyModel)
    with pytest.raises(RuntimeError): AnomalyScorer().save(path)


def test_other_files_are_refused(scorer, tmp_path):
    path = tmp_path / "a.safetensors"
    save(VAE(MLPEncoder(4, 2), MLPDecoder(2, 4)), path)
    with pytest.raises(FileFormatError, match="holds a VAE"):
        AnomalyScorer.load(path)
    for extra in ({}, {"depth": 3}, {"false_alarms": 7.}, {"seed": "x"}):
        save(scorer.model_, path, extra=extra)
        if extra:
            with pytest.raises(FileFormatError, match="settings"):
                AnomalyScorer.load(path)
    scorer.save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileFormatError): AnomalyScorer.load(path)


# --- blame ----------------------------------------------------------------

def test_blame_falls_on_the_feature_that_was_moved():
    scorer = AnomalyScorer(steps=100).fit(table(300))
    x = table(20)
    x[np.arange(20), np.arange(20) % 4] += 8
    blame = scorer.explain(x)
    assert blame.shape == (20, 4)
    assert (blame.argmax(1) == np.arange(20) % 4).mean() >= .7


def test_blame_does_not_depend_on_the_batch(scorer):
    x = table(7, seed=8)
    one = np.concatenate([scorer.explain(row[None]) for row in x])
    np.testing.assert_allclose(one, scorer.explain(x), rtol=1e-3, atol=1e-4)
