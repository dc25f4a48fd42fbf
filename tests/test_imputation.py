"""What chapter 14 is no place for: fuzz, files, scikit-learn's rules."""
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from vae_notes.autoencoder import mlp
from vae_notes.files import FileFormatError, load, save
from vae_notes.imputation import (BatchedLinear, MaskedAutoencoder,
                                  MaskedImputer, ResidualMembers, block_gaps,
                                  companions, conditional_normal,
                                  fit_normal, gap_distance, ladder,
                                  normal_scores, nrmse, random_gaps,
                                  stack_weights)

QUICK = dict(members=2, hidden=8, steps=20, trees=4, neighbours=3)


def table(seed=0, rows=60, columns=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2)) @ rng.normal(size=(2, columns))
    x = x + .3 * rng.normal(size=x.shape)
    x[:, 0] = np.exp(x[:, 0])  # skewed
    x[:, -1] = x[:, -1].round()  # few values
    return x


def holed(seed=0, **kwargs):
    x = table(seed, **kwargs)
    return np.where(random_gaps(x.shape, .3, seed=seed), np.nan, x)


@pytest.fixture(scope="module")
def fitted():
    return MaskedImputer(**QUICK).fit(holed())


def test_known_cells_stay_and_gaps_are_filled(fitted):
    x = holed(1)
    out, gap = fitted.transform(x), np.isnan(x)
    assert out.shape == x.shape and out.dtype == np.float64
    np.testing.assert_array_equal(out[~gap], x[~gap])
    assert np.isfinite(out).all()


def test_no_gaps_change_nothing(fitted):
    x = table(2)
    np.testing.assert_array_equal(fitted.transform(x), x)
    np.testing.assert_array_equal(fitted.sample(x, 2), [x, x])
    for end in fitted.interval(x): np.testing.assert_array_equal(end, x)


def test_guesses_stay_within_what_the_column_was(fitted):
    x, gap = holed(1) , np.isnan(holed(1))
    wild = np.where(gap, np.nan, 1e6 * x)
    for out in (fitted.transform(wild), *fitted.interval(wild)):
        low, high = np.nanmin(holed(), 0), np.nanmax(holed(), 0)
        assert ((out >= low) & (out <= high))[gap].all()


def test_all_gaps_in_a_row(fitted):
    empty = np.full((3, 4), np.nan)
    out = fitted.transform(empty)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[0], out[1])


def test_rows_do_not_depend_on_each_other(fitted):
    x = holed(3)
    whole = fitted.transform(x)
    ones = np.concatenate([fitted.transform(r[None]) for r in x])
    np.testing.assert_allclose(whole, ones, rtol=1e-5, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_allclose(fitted.transform(x[order]), whole[order],
                               rtol=1e-5, atol=1e-5)


def test_same_seed_same_numbers_and_global_state_untouched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = (MaskedImputer(**QUICK, seed=3).fit(holed()) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    x = holed(1)
    np.testing.assert_array_equal(a.transform(x), b.transform(x))
    np.testing.assert_array_equal(a.sample(x, 3, seed=1),
                                  b.sample(x, 3, seed=1))
    assert (a.sample(x, 3, seed=1) != a.sample(x, 3, seed=2)).any()
    other = MaskedImputer(**QUICK, seed=4).fit(holed())
    assert (other.transform(x) != a.transform(x)).any()


def test_fit_forgets_the_values_in_gaps():
    x, gap = table(), random_gaps((60, 4), .3, seed=0)
    a = MaskedImputer(**QUICK).fit(np.where(gap, np.nan, x))
    again = MaskedImputer(**QUICK).fit(np.where(gap, np.nan, x + gap * 9))
    np.testing.assert_array_equal(a.transform(holed(1)),
                                  again.transform(holed(1)))


def test_unit_of_a_column_does_not_matter():
    x, scale = holed(), np.array([1., 1000., .001, 1.])
    shift = np.array([0., 5., -3., 0.])
    a = MaskedImputer(**QUICK).fit(x)
    b = MaskedImputer(**QUICK).fit(x * scale + shift)
    np.testing.assert_allclose(a.transform(x) * scale + shift,
                               b.transform(x * scale + shift), rtol=2e-2,
                               atol=2e-2 * scale.max() * 1e-3 + 2e-5)


def test_intervals_hold_the_draws_and_widen_with_the_level(fitted):
    x = holed(1)
    gap = np.isnan(x)
    ends = [fitted.interval(x, level) for level in (.5, .8, .95)]
    for (l1, h1), (l2, h2) in zip(ends, ends[1:]):
        assert (l2 <= l1).all() and (h1 <= h2).all()
        assert (h2 > h1)[gap].any()
    low, high = fitted.interval(x, .999)
    draws = fitted.sample(x, 20)
    assert ((draws >= low) & (draws <= high)).all()


def test_coverage_is_what_was_asked():
    train, test = holed(4, rows=400), table(4, rows=1200)[400:]
    rng = np.random.default_rng(9)
    root = rng.normal(size=(3, 3))
    x = rng.normal(size=(1500, 3)) @ root
    gap = random_gaps(x.shape, .3, seed=2)
    model = MaskedImputer(**QUICK).fit(np.where(gap, np.nan, x)[:500])
    low, high = model.interval(np.where(gap, np.nan, x)[500:])
    inside = ((low <= x[500:]) & (x[500:] <= high))[gap[500:]]
    assert .85 < inside.mean() < .95


def test_discrete_columns_are_drawn_from_their_values(fitted):
    x = holed(1)
    gap = np.isnan(x[:, -1])
    values = np.unique(holed()[:, -1])
    for t in fitted.sample(x, 4): assert np.isin(t[gap, -1], values).all()


@pytest.mark.parametrize("form", [pd.DataFrame, torch.tensor, list])
def test_forms_of_a_table(fitted, form):
    x = holed(1)
    np.testing.assert_array_equal(fitted.transform(form(x)),
                                  fitted.transform(x))


def test_odd_tables_are_fitted():
    x = holed(rows=30)
    x[:, 1] = np.where(np.isnan(x[:, 1]), np.nan, 7.)  # constant
    x[:, 2] = np.nan
    x[4, 2] = 3.  # a single known cell
    out = MaskedImputer(**QUICK).fit_transform(x)
    assert np.isfinite(out).all()
    assert (out[:, 1] == 7).all() and (out[:, 2] == 3).all()
    one = np.where(random_gaps((30, 1)), np.nan, table(rows=30)[:, :1])
    assert np.isfinite(MaskedImputer(**QUICK).fit_transform(one)).all()
    full = MaskedImputer(**QUICK).fit(table())  # no gaps to learn from
    assert np.isfinite(full.transform(holed(1))).all()


@pytest.mark.parametrize("trees, neighbours", [(0, 0), (0, 3), (3, 0)])
def test_methods_can_be_left_out(trees, neighbours):
    settings = QUICK | dict(trees=trees, neighbours=neighbours)
    model = MaskedImputer(**settings).fit(holed())
    assert model.answers(holed()).shape[-1] == 2 + bool(trees) + bool(
        neighbours)
    assert np.isfinite(model.transform(holed())).all()


def test_untrained_member_is_the_normal_model():
    model = MaskedImputer(**QUICK | dict(steps=0)).fit(holed())
    x = holed(1)
    said = model.answers(x).numpy()[np.isnan(x)]
    np.testing.assert_allclose(said[:, 0], said[:, 1], atol=.2)
    assert (model.weights_ >= 0).all()


@pytest.mark.parametrize("bad, error, words", [
    (np.zeros((5, 3)), ValueError, "≥ 10 rows"),
    (np.zeros(20), ValueError, r"shape \(rows, columns\)"),
    (np.zeros((20, 0)), ValueError, r"shape \(rows, columns\)"),
    (np.full((20, 2), np.inf), ValueError, "infinity in column 0"),
    (np.full((20, 2), np.nan), ValueError, "column 0 has no known"),
    ([["a"]] * 20, TypeError, "table of numbers"),
    (None, (TypeError, ValueError), "x: expected")])
def test_bad_tables(bad, error, words):
    with pytest.raises(error, match=words): MaskedImputer(**QUICK).fit(bad)


@pytest.mark.parametrize("name, value, error", [
    ("members", 1, ValueError), ("members", 2., TypeError),
    ("hidden", 0, ValueError), ("steps", -1, ValueError),
    ("trees", -1, ValueError), ("trees", True, TypeError),
    ("neighbours", None, TypeError), ("seed", -1, ValueError)])
def test_bad_parameters(name, value, error):
    with pytest.raises(error, match=name):
        MaskedImputer(**QUICK | {name: value}).fit(holed())


def test_bad_calls(fitted):
    with pytest.raises(ValueError, match="4 columns"):
        fitted.transform(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="level"): fitted.interval(holed(), 1)
    with pytest.raises(ValueError, match="level"): fitted.interval(holed(), 0)
    with pytest.raises(ValueError, match="n: expected"):
        fitted.sample(holed(), 0)
    for call in ("transform", "sample", "interval", "answers"):
        with pytest.raises(AttributeError, match="fit first"):
            getattr(MaskedImputer(), call)(holed())
    with pytest.raises(ValueError, match="depth"):
        MaskedImputer().set_params(depth=1)
    with pytest.raises(AttributeError, match="fit first"):
        MaskedImputer().save("never")


def test_scikit_learn(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "weights_")
    pipe = make_pipeline(MaskedImputer(**QUICK), Ridge())
    pipe.set_params(maskedimputer__steps=5)
    y = table()[:, 1]
    assert np.isfinite(pipe.fit(holed(), y).predict(holed(1))).all()
    assert "members=2" in repr(fitted)


def test_file_round_trip(fitted, tmp_path):
    path = tmp_path / "imputer.safetensors"
    fitted.save(path)
    back, x = MaskedImputer.load(path), holed(1)
    assert back.get_params() == fitted.get_params()
    np.testing.assert_array_equal(back.transform(x), fitted.transform(x))
    np.testing.assert_array_equal(back.sample(x), fitted.sample(x))
    np.testing.assert_array_equal(back.interval(x), fitted.interval(x))


def test_other_files_are_refused(fitted, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no file of ours")
    with pytest.raises(FileFormatError): MaskedImputer.load(path)
    from vae_notes.files import read_state, write_state
    for state in ({"a": 1}, [1, 2], {"imputer": {}, "fitted": {}}):
        write_state(path, state)
        with pytest.raises(FileFormatError): MaskedImputer.load(path)
    fitted.save(path)
    good = read_state(path)
    for name in good["fitted"]:
        fitted_part = {k: v for k, v in good["fitted"].items() if k != name}
        write_state(path, {"imputer": good["imputer"],
                           "fitted": fitted_part})
        with pytest.raises(FileFormatError): MaskedImputer.load(path)
    with pytest.raises(OSError): MaskedImputer.load(tmp_path / "none")


@pytest.mark.parametrize("model", [
    MaskedAutoencoder(mlp([8, 6, 3]), mlp([3, 4]), rates=(.1, .3)),
    ResidualMembers(2, 3, 5), BatchedLinear(2, 3, 4)])
def test_modules_are_stored(model, tmp_path):
    save(model, tmp_path / "m.safetensors")
    back = load(tmp_path / "m.safetensors")
    for (n, a), (m, b) in zip(model.state_dict().items(),
                              back.state_dict().items()):
        assert n == m and torch.equal(a, b)
    if isinstance(model, MaskedAutoencoder): assert back.rates == (.1, .3)


@pytest.mark.parametrize("rates", [(-.1, .5), (.5, .4), (.1, 1.1), (0, 0)])
def test_rates(rates):
    with pytest.raises(ValueError, match="rates"):
        MaskedAutoencoder(mlp([4, 2]), mlp([2, 2]), rates=rates)


def test_masked_autoencoder_checks_its_data():
    model = MaskedAutoencoder(mlp([4, 2]), mlp([2, 2]))
    x = torch.randn(5, 2)
    assert model.check(x, torch.ones(5, 2)) is x
    for known in (torch.full((5, 2), .5), torch.ones(5, 3)):
        with pytest.raises(ValueError, match="known"): model.check(x, known)
    with pytest.raises(ValueError, match="x"):
        model.check(x * math.nan, torch.ones(5, 2))


def test_what_is_missing_changes_no_loss():
    model = MaskedAutoencoder(mlp([8, 6]), mlp([6, 4]))
    x, known = torch.randn(50, 4), (torch.rand(50, 4) < .6).float()
    losses = []
    for junk in (0., 1e3):
        torch.manual_seed(0)
        losses.append(model.terms(x + junk * (1 - known), known)["loss"])
    torch.testing.assert_close(*losses)


@given(st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_conditional_normal_against_numpy(d, seed):
    rng = np.random.default_rng(seed)
    root, mu = rng.normal(size=(d, d)), rng.normal(size=d)
    cov, x = root @ root.T + np.eye(d), rng.normal(size=d)
    gap = rng.random(d) < .5
    given_x = torch.from_numpy(np.where(gap, np.nan, x))[None]
    mean, left = conditional_normal(given_x, torch.from_numpy(mu),
                                    torch.from_numpy(cov))
    k = ~gap
    gain = cov[np.ix_(gap, k)] @ np.linalg.inv(cov[np.ix_(k, k)])
    want = x.copy()
    want[gap] = mu[gap] + gain @ (x - mu)[k]
    rest = np.zeros((d, d))
    rest[np.ix_(gap, gap)] = (cov[np.ix_(gap, gap)]
                              - gain @ cov[np.ix_(k, gap)])
    np.testing.assert_allclose(mean[0], want, atol=1e-8)
    np.testing.assert_allclose(left[0], rest, atol=1e-8)


def test_fit_normal_finds_what_made_the_rows():
    rng = np.random.default_rng(0)
    cov = np.array([[1., .8, .3], [.8, 1., .1], [.3, .1, 1.]])
    x = rng.multivariate_normal([.5, 0, -.5], cov, 6000)
    x[rng.random(x.shape) < .3] = np.nan
    mu, got = fit_normal(torch.from_numpy(x))
    np.testing.assert_allclose(mu, [.5, 0, -.5], atol=.06)
    np.testing.assert_allclose(got, cov, atol=.06)
    tight = fit_normal(torch.from_numpy(x), prior=1e9)[1]
    np.testing.assert_allclose(tight, np.eye(3), atol=1e-4)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_scores_rise_with_values_and_mirror(column):
    values, scores = normal_scores(np.array(column, float))
    assert (np.diff(values) > 0).all() and (np.diff(scores) > 0).all()
    _, mirror = normal_scores(-np.array(column, float))
    np.testing.assert_allclose(scores, -mirror[::-1], atol=1e-9)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_distance_and_ladder(seed):
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(4, 3, generator=g, dtype=torch.float64)
    a = a.masked_fill(torch.rand(4, 3, generator=g) < .3, math.nan)
    want = ((a[:, None] - a[None])**2).nan_to_num(nan=2.).sum(-1)
    torch.testing.assert_close(gap_distance(a, a), want, atol=1e-9, rtol=0)
    s = a.nan_to_num()
    assert ladder(s, 5).shape == (4, 15)
    up = ladder(s + .1, 5) - ladder(s, 5)
    assert (up >= -1e-6).all()


@given(st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_stack_weights_meet_their_conditions(k, seed):
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(40, k, generator=g, dtype=torch.float64)
    y = torch.randn(40, generator=g, dtype=torch.float64)
    a, b = p.T @ p, p.T @ y
    w = stack_weights(a, b)
    slope = a @ w - b  # Karush, Kuhn and Tucker
    assert (w >= 0).all() and (slope > -1e-6).all()
    assert (slope * w).abs().max() < 1e-6


def test_companions_come_only_with_proof():
    r = torch.rand(400, 5, generator=torch.Generator().manual_seed(0)) < .3
    assert (companions(r) == 0).float().mean() > .9
    blocks = torch.from_numpy(block_gaps((4000, 6), .3))
    c = companions(blocks)
    assert c[0, 1] > .2 and c[0, 5] > .2 and c[0, 3] == 0
    assert (c.diagonal() == 0).all()
    assert torch.isfinite(companions(torch.zeros(9, 2, dtype=bool))).all()


@pytest.mark.parametrize("kind", [random_gaps, block_gaps])
def test_gaps_have_their_share(kind):
    gaps = kind((20_000, 9), .3, seed=1)
    assert abs(gaps.mean() - .3) < .01
    np.testing.assert_array_equal(gaps, kind((20_000, 9), .3, seed=1))
    assert (gaps != kind((20_000, 9), .3, seed=2)).any()
    if kind is block_gaps: assert set(gaps.sum(1)) == {0, 3}


def test_scores():
    truth, gaps = np.zeros((2, 2)), np.array([[1, 0], [1, 0]], bool)
    assert nrmse(truth, np.array([[3., 9.], [4., 9.]]), gaps) == 12.5**.5
