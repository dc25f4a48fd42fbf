"""The gates see what they should, and the generators keep their promises."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from vae_notes.climate import (GATES, LONG_RUN, BlockBootstrap, ClimateJudge, DaysAR, HarmonicsAR, autocovariance,
                               climate_gates, copied, impulse_response, lag_slopes, long_run_gates, run_through,
                               sensor_step, unrounded, years_of, yule_walker)
from vae_notes.core import generator
from vae_notes.temperature import CLIMATES, hourly, made_place, split_by_year, to_unit

GENERATORS = [HarmonicsAR, BlockBootstrap, DaysAR]


@pytest.fixture(scope="module", params=["city", "coast"])
def place(request):
    train, spare, held = split_by_year(made_place(request.param, years=16), (.5, .25, .25))
    return train, spare, held, ClimateJudge(held, train, groups=50)


def redated(values, like): return hourly(values, like.index[0], like.attrs["unit"])


def days_of(x): return x.to_numpy().reshape(-1, 24)


# --- canaries: each fails by a gate named here; real years pass ---

def test_real_years_pass(place):
    train, spare, held, judge = place
    assert judge(spare).passed >= 13 and judge(held).passed == 15


def test_smoothed(place):
    x = place[2].rolling(5, center=True, min_periods=1).mean().astype(np.float32)
    x.attrs["unit"] = "C"
    assert {"change sd", "change KS", "classifier"} <= set(place[3](x).failed)


def test_shuffled_days(place):
    days = days_of(place[2])
    month = place[2].index[::24].year * 12 + place[2].index[::24].month
    order = np.lexsort((np.random.default_rng(0).random(len(days)), month))
    assert {"ACF to 48 h", "warm spells", "forecast"} <= set(place[3](redated(days[order].ravel(), place[2])).failed)


def test_copied(place):
    failed = place[3](copied(place[2].index, place[0])).failed
    assert {"copied days", "nearest day"} <= set(failed)


def test_independent_hours(place):
    years, t = years_of(place[0]).numpy(), place[2].index
    pick = np.random.default_rng(1).integers(len(years), size=len(t))
    x = redated(years[pick, (t.day_of_year.to_numpy() - 1) % 365, t.hour], place[2])
    assert {"ACF to 48 h", "change sd", "classifier", "forecast"} <= set(place[3](x).failed)


@pytest.mark.parametrize("spoil, gates", [
    (lambda v: v + 3, {"season", "month KS"}), (lambda v: np.roll(v, 5), {"day"}),
    (lambda v: v.mean() + 1.4 * (v - v.mean()), {"month sd", "season"}),
    (lambda v: v[::-1].copy(), {"season"}),
    (lambda v: v + np.random.default_rng(0).normal(0, 1.5, len(v)).astype(np.float32), {"change sd", "change KS", "range KS"})])
def test_other_faults(place, spoil, gates):
    assert gates <= set(place[3](redated(spoil(place[2].to_numpy()), place[2])).failed)


# --- what must not matter ---

def test_units_do_not_matter(place):
    train, spare, held, judge = place
    a = judge(spare).table
    b = climate_gates(to_unit(spare, "F"), to_unit(held, "K"), train, groups=50).table
    assert_close(a.score.to_numpy(), b.score.to_numpy(), rtol=.02, atol=.01)
    assert (a.passed == b.passed).sum() >= 14


def test_nothing_is_changed(place):
    train, spare, held, judge = place
    before = spare.copy()
    assert judge(spare).table.equals(judge(spare).table) and spare.equals(before)


def test_the_step_of_the_sensor_is_forgiven():
    train, spare, held = split_by_year(made_place("city", years=16), (.5, .25, .25))
    fine = made_place(CLIMATES["city"]._replace(step=.001), years=16)
    fine = split_by_year(fine, (.5, .25, .25))[1]  # the same weather, not rounded
    judge = ClimateJudge(held, train, groups=30)
    assert_close(judge(fine).table.score.to_numpy(), judge(spare).table.score.to_numpy(), rtol=.05, atol=.005)


def test_longer_ones_are_judged_in_parts(place):
    train, spare, held, judge = place
    both = pd.concat([spare, held])
    both.attrs["unit"] = "C"
    a, b, c = (judge(x).table.score for x in (spare, held, both))
    for gate in GATES[:11]: assert_close(c[gate], (a[gate] + b[gate]) / 2, rtol=1e-6, atol=1e-9)


def test_the_table(place):
    gates = place[3](place[1])
    assert list(gates.table.index) == list(GATES) and gates.passed + len(gates.failed) == 15
    assert "season" in repr(gates) and "<table" in gates._repr_html_()
    for gate, row in gates.table.iterrows():
        assert row.passed == (row.score >= row.limit if gate == "nearest day" else row.score <= row.limit)
    assert gates.plot().get_xscale() == "log"


def test_too_little(place):
    train, spare, held, judge = place
    with pytest.raises(ValueError, match="generated: expected ≥ 4 whole years, got 3"): judge(spare.iloc[:3 * 8784])
    with pytest.raises(ValueError, match="held_out: expected ≥ 2"): ClimateJudge(held.iloc[:9000], train)
    with pytest.raises(ValueError, match="train: expected ≥ 3"): ClimateJudge(held, train.iloc[:2 * 8770])
    with pytest.raises(ValueError, match="whole calendar year"): judge(held.iloc[:100])
    with pytest.raises(TypeError, match="generated: expected a pandas Series"): judge(held.to_numpy())
    with pytest.raises(TypeError, match="held_out: expected a pandas Series"): ClimateJudge(None, train)


# --- the generators ---

@pytest.mark.parametrize("kind", GENERATORS)
def test_generators(place, kind):
    train, _, held, judge = place
    made = kind().fit(train)
    x = made.generate(held.index, seed=1)
    assert x.index.equals(held.index) and x.attrs["unit"] == "C" and x.dtype == np.float32
    assert x.equals(kind().fit(train).generate(held.index, seed=1)) and not x.equals(made.generate(held.index, seed=2))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    short = made.generate(pd.date_range("2031-03-05 07:00", periods=30, freq="h"), seed=3)
    assert len(short) == 30 and torch.equal(state, torch.get_rng_state())
    assert judge(x).passed >= 9


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_in_another_unit(kind):
    train = made_place("north", years=6)
    t = pd.date_range("2001", "2003", freq="h", inclusive="left")
    c, f = kind().fit(train).generate(t, seed=1), kind().fit(to_unit(train, "F")).generate(t, seed=1)
    assert_close(to_unit(f, "C").to_numpy(), c.to_numpy(), rtol=0, atol=.05)


def test_days_want_enough_years():
    with pytest.raises(ValueError, match="expected ≥ 730 days"): DaysAR().fit(made_place("coast", years=2).iloc[:17000])
    with pytest.raises(ValueError, match="blend"): DaysAR(blend=2)
    with pytest.raises(ValueError, match="lags"): HarmonicsAR(0)
    with pytest.raises(ValueError, match="jitter"): BlockBootstrap(jitter=-1)


def test_a_warming_climate_goes_on():
    train = made_place(CLIMATES["coast"]._replace(trend=2.), years=12)
    t = pd.date_range("2030", "2032", freq="h", inclusive="left")
    for kind in GENERATORS: assert abs(kind().fit(train).generate(t, seed=0).mean() - 14 - .2 * 51) < 3


# --- small parts ---

def test_yule_walker_finds_the_weights():
    a = torch.tensor([.6, -.3, .2]).double()
    w = impulse_response(a, 4000)
    gamma = torch.stack([(w[k:] * w[:len(w) - k]).sum() for k in range(4)])  # of (42.4), innovations of variance 1
    assert_close(yule_walker(gamma), a)
    e = torch.randn(4500, generator=generator(0)).double()
    assert len(run_through(w, e)) == 500


def test_autocovariance_of_many():
    u = torch.randn(3, 40, generator=generator(0))
    assert_close(autocovariance(u, 5)[1], autocovariance(u[1], 5))
    assert_close(autocovariance(u, 5)[2, 4], (u[2, 4:].double() * u[2, :-4]).mean())


@pytest.mark.parametrize("unit, step", [("C", 1.), ("C", .1), ("F", 1.), ("K", .5), ("C", 0.)])
def test_steps_are_found(unit, step):
    x = to_unit(made_place("coast", years=1), unit).to_numpy(float) + .0017
    x = hourly(np.round(x / step) * step if step else x + np.pi * 1e-3 * np.arange(len(x)) % .01, "2020", unit)
    assert sensor_step(x) == (unit, step)
    if step: assert sensor_step(to_unit(x, "C"))[1] == step


def test_unrounded_stays_within_the_step():
    x = made_place("city", years=3)
    assert (unrounded(x).round() == x).all() and unrounded(x).diff().var() < x.diff().var()
    fine = made_place("coast", years=2)
    assert unrounded(fine) is fine
    spikes = np.round(np.sin(np.arange(3000) / 40) * 6) + 30 * (np.arange(3000) % 500 == 7)
    spikes = hourly(spikes, "2020", "C")  # smooth but for a few hours
    assert (unrounded(spikes).round() == spikes).all()


def test_lag_slopes_are_regressions():
    x = made_place("plain", years=3)
    found = lag_slopes(x)
    day = x.resample("D").mean().to_numpy(float)
    assert_close(found["daily"], np.polyfit(day[:-1], day[1:], 1)[0])
    assert set(found) == {"hourly", "daily", "monthly"}


def test_the_long_run():
    train = made_place("plain", years=10)
    assert long_run_gates(train, train).passed == 7
    cold = hourly(train.to_numpy() - 2, train.index[0], "C")
    assert {"season, °C", "worst month, °C", "month KS"} <= set(long_run_gates(cold, train).failed)
    wide = hourly(train.mean() + 1.3 * (train.to_numpy() - train.mean()), train.index[0], "C")
    assert {"worst month's sd", "daily range, °C", "day, °C"} <= set(long_run_gates(wide, train).failed)
    assert list(long_run_gates(cold, train).table.index) == list(LONG_RUN)
