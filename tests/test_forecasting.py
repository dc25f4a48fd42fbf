"""What is no lesson in chapter 43: edges of series, bad input, repeatability."""

import numpy as np
import pandas as pd
import pytest
import torch

from vae_notes.forecasting import day_scores, fill, forecast, given
from vae_notes.seasonal import SeasonalVAE
from vae_notes.temperature import made_phoenix, to_unit


@pytest.fixture(scope="module")
def series():
    return made_phoenix(years=4)[:"1972"]


@pytest.fixture(scope="module")
def model(series):
    torch.manual_seed(0)
    model = SeasonalVAE(filters=6, latent=3, memory=1, lags=24)
    model.learn(series, epochs=1, stride=72, hours=384)
    return model


def test_fill_keeps_what_is_known(model, series):
    part = series["1971-05-01":"1971-05-20"].copy()
    whole = part.copy()
    for a, b in ((0, 3), (100, 130), (131, 132), (470, 480)): part.iloc[a:b] = np.nan
    filled = fill(model, part, around=48, n=200)
    known = part.notna()
    assert filled[known].equals(whole[known]) and filled.notna().all()
    assert part.isna().sum() == 3 + 30 + 1 + 10  # what came in is as it was
    assert (filled - whole)[~known].abs().mean() < 6
    assert fill(model, whole, n=200).equals(whole)


def test_fill_takes_neighbouring_gaps_for_unknown(model, series):
    part = series["1971-05-01":"1971-05-06"].copy()
    part.iloc[30:40] = part.iloc[45:50] = np.nan
    assert fill(model, part, n=200).notna().all()


def test_forecast(model, series):
    x, times = forecast(model, series, hours=30, past=40, n=200, seed=1)
    again, _ = forecast(model, series, hours=30, past=40, n=200, seed=1)
    other, _ = forecast(model, series, hours=30, past=40, n=200, seed=2)
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert x.shape == (200, 30) and times[0] - series.index[-1] == pd.Timedelta(hours=1)
    warmer, _ = forecast(model, _plus(series, 2.), hours=30, past=40, n=200, seed=1)
    assert warmer[:, 0].mean() > x[:, 0].mean()


def _plus(series, by):
    more = series + np.float32(by)
    more.attrs.update(series.attrs)
    return more


def test_given_obeys_what_is_known(model, series):
    part = series["1971-07-01":"1971-07-03"].copy()
    part.iloc[20:] = np.nan
    x = given(model, part, n=300, ridge=0.)
    assert (x[:, :20] - torch.tensor(part.iloc[:20].to_numpy())).abs().max() < .05


def test_day_scores(model, series):
    part = series["1971-03-01":"1971-03-20"].copy()
    scores = day_scores(model, part, n=400)
    assert len(scores) == 20 - 6 and scores.index[0] == pd.Timestamp("1971-03-04") and (scores > 0).all()
    part.iloc[24 * 9:24 * 10] += np.where(np.arange(24) % 2, 6, -6).astype(np.float32)
    assert day_scores(model, part, n=400).idxmax() == pd.Timestamp("1971-03-10")


def test_refusals(model, series):
    hole = series[:"1970-02-01"].copy()
    hole.iloc[5] = np.nan
    with pytest.raises(ValueError, match="a number for every hour"): forecast(model, hole)
    with pytest.raises(ValueError, match="a number for every hour"): day_scores(model, hole)
    with pytest.raises(ValueError, match="unit C"): given(model, to_unit(series[:99], "F"))
    with pytest.raises(ValueError, match="unit C"): day_scores(model, to_unit(series[:240], "F"))
    with pytest.raises(ValueError, match="draws: expected"): forecast(model, series, n=20)
    with pytest.raises(ValueError, match="hours: expected"): forecast(model, series, hours=0)
    with pytest.raises(ValueError, match="past: expected"): forecast(model, series, past=0)
    with pytest.raises(ValueError, match="around: expected"): fill(model, hole, around=0)
    with pytest.raises(ValueError, match="series: expected"): day_scores(model, series[:100])
