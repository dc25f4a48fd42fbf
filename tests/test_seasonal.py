"""What is no lesson in chapter 41: every length, save and load, bad input."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from vae_notes.core import generator
from vae_notes.files import load, save
from vae_notes.seasonal import (SameConv1d, SeasonalDecoder, SeasonalEncoder, SeasonalPrior, SeasonalVAE, _fit_logvar,
                                _hourly_features, _impulse, _run, _stock, _yule_walker, condition, conv_same, transposed_same)
from vae_notes.temperature import hourly, made_phoenix, season_features, to_unit


@pytest.fixture(scope="module")
def train():
    return made_phoenix(years=4)[:"1972"]


@pytest.fixture(scope="module")
def model(train):
    torch.manual_seed(0)
    model = SeasonalVAE(filters=8, latent=4, memory=2, lags=24)
    model.learn(train, epochs=1, stride=72, hours=384)
    return model


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_layer_is_torchs(s, extra, m, batch, c_in, c_out):
    k = min(s + extra, 2 * s)
    x, w, y = randn(batch, m * s, c_in), randn(k, c_in, c_out, seed=1), randn(batch, m, c_out, seed=2)
    assert_close((conv_same(x, w, s) * y).sum(), (x * transposed_same(y, w, s)).sum())
    for transposed in (False, True):
        torch.manual_seed(0)
        layer = SameConv1d(c_in, c_out, k, s, transposed).double()
        torch.nn.init.uniform_(layer.bias, -1, 1)
        x = randn(batch, m * s, c_in, seed=3).requires_grad_()
        leaves = [x, *layer.parameters()]
        ours, stock = layer(x), _stock(layer, x)
        assert_close(ours, stock)
        assert_close(torch.autograd.grad(ours.square().sum(), leaves), torch.autograd.grad(stock.square().sum(), leaves))


def test_layer_without_relu_and_without_input_gradient():
    layer = SameConv1d(2, 3, 5, 3, relu=False).double()
    x = randn(2, 9, 2)
    assert (layer(x) < 0).any()
    layer(x).sum().backward()
    grad = layer.weight.grad.clone()
    layer.weight.grad = None
    _stock(layer, x).sum().backward()
    assert_close(grad, layer.weight.grad)
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    x.requires_grad_()
    torch.autograd.gradcheck(layer, x)


def test_layer_takes_views():
    layer, x = SameConv1d(3, 2, 3, 2).double(), randn(2, 3, 8)
    assert_close(layer(x.mT), layer(x.mT.contiguous()))


@pytest.mark.parametrize("wrong", [dict(kernel=1), dict(kernel=5), dict(n_in=0), dict(n_out=1.5), dict(stride=0)])
def test_layer_refuses(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        SameConv1d(**dict(n_in=1, n_out=2, kernel=3, stride=2) | wrong)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3))
def test_any_length(k, batch):
    torch.manual_seed(0)
    model = SeasonalVAE(filters=4, latent=2)
    x, cond = randn(batch, 1, 96 * k).float(), randn(batch, k, 6, seed=1).float()
    parts = model.elbo(x, cond, generator=generator(0))
    assert parts.value.shape == (batch,) and model.reconstruct(x).shape == x.shape
    assert model.embed(x).shape == (batch, 2 * k)
    alone = torch.stack([model.elbo(x[i:i + 1], cond[i:i + 1], 400).value[0] for i in range(batch)])
    assert_close(alone, model.elbo(x, cond, 400).value, rtol=.05, atol=1.)


def test_parameters():
    def count(m): return sum(p.numel() for p in m.parameters())
    assert [count(m) for m in (SeasonalVAE(), SeasonalVAE(20), SeasonalEncoder(), SeasonalDecoder(), SeasonalPrior())] == [
        42_942, 11_942, 22_020, 20_801, 120]


def test_save_and_load(model, tmp_path):
    save(model, tmp_path / "m.safetensors")
    back = load(tmp_path / "m.safetensors")
    times = pd.date_range("2001-03-05 07:00", periods=500, freq="h")
    assert back.unit == model.unit == "C"
    assert back.generate(times, seed=3).equals(model.generate(times, seed=3))
    parts = [SameConv1d(1, 2, 3, 2), SeasonalEncoder(3, 2), SeasonalDecoder(3, 2), SeasonalPrior(2, 1)]
    for part in parts:
        save(part, tmp_path / "p.safetensors")
        again = load(tmp_path / "p.safetensors")
        for a, b in zip(part.parameters(), again.parameters()): assert torch.equal(a, b)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 200), st.integers(1, 900), st.integers(0, 5))
def test_any_hours(model, start, n, seed):
    times = pd.date_range("1999-12-28", periods=start + n, freq="h")[start:]
    x = model.draws(times, 2, seed=seed)
    assert x.shape == (2, n) and x.isfinite().all() and x.abs().max() < 90
    assert torch.equal(x, model.draws(times, 2, seed=seed))


def test_start_at_any_hour(model):
    times = pd.date_range("1999-03-01", periods=60, freq="h")
    whole = model.draws(times, 3, seed=2, noise=False)
    assert_close(model.draws(times[7:], 3, seed=2, noise=False), whole[:, 7:])


def test_draws_are_independent_and_vary(model):
    times = pd.date_range("1975-01-01", periods=24 * 30, freq="h")
    x = model.draws(times, 300, seed=1)
    mean = x.mean(1)
    r = np.corrcoef(mean[:150], mean[150:])[0, 1]
    assert mean.std() > .3 and abs(r) < 4.5 / 150**.5


def test_climate_comes_out(model, train):
    """The correction leaves the mean of month and hour where it was."""
    made = model.draws(train.index, 8, seed=5).mean(0).numpy()
    by = [train.index.month, train.index.hour]
    table = pd.DataFrame({"made": made, "real": train.to_numpy()}).groupby([by[0], by[1]]).mean()
    assert np.sqrt(((table.made - table.real)**2).mean()) < 1.


def test_learning_is_deterministic(train):
    series = train[:"1971"]
    made = []
    for _ in range(2):
        torch.manual_seed(7)
        model = SeasonalVAE(filters=4, latent=2, memory=1, lags=4)
        model.learn(series, epochs=1, stride=240, hours=192)
        made.append(model.generate(series.index[:100]))
    assert made[0].equals(made[1])


def test_another_unit(model, train):
    with pytest.raises(ValueError, match="expected the model's unit C"): model.windows(to_unit(train, "F"), 96)
    torch.manual_seed(0)
    f = SeasonalVAE(filters=4, latent=2, memory=1, lags=4)
    f.learn(to_unit(train, "F"), epochs=1, stride=240, hours=192)
    made = f.generate(train.index[:2400], seed=1)
    assert made.attrs["unit"] == "F" and 30 < made.mean() < 120


def test_refusals(model, train):
    times = train.index
    new = SeasonalVAE(filters=4, latent=2)
    with pytest.raises(RuntimeError, match="learn"): new.generate(times[:10])
    with pytest.raises(TypeError, match="times"): model.generate(["2020-01-01"])
    with pytest.raises(ValueError, match="consecutive"): model.generate(times[::2])
    with pytest.raises(ValueError, match="consecutive"): model.generate(times[:0])
    with pytest.raises(ValueError, match="n: expected"): model.draws(times[:5], 0)
    with pytest.raises(TypeError, match="seed"): model.generate(times[:5], seed=.5)
    with pytest.raises(ValueError, match="two years"): model.learn_weather(train[:9000])
    with pytest.raises(ValueError, match="multiple of 96"): model.windows(train, 100)
    with pytest.raises(ValueError, match="multiple of 96"): model.encode(torch.zeros(1, 1, 100))
    with pytest.raises(ValueError, match="x: expected shape"): model.encode(torch.zeros(1, 96))
    with pytest.raises(ValueError, match="cond"): model.elbo(torch.zeros(1, 1, 96), torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="z: expected a multiple of 4"): model.decode(torch.zeros(1, 7))
    with pytest.raises(TypeError): SeasonalVAE(filters="a")
    with pytest.raises(ValueError): SeasonalPrior(harmonics=0)


def test_windows_and_their_seasons(model, train):
    x, cond = model.windows(train, 192, 24)
    assert_close(x[3, 0] * model.scale[1] + model.scale[0], torch.from_numpy(train.to_numpy()[72:264].copy()), rtol=0, atol=1e-4)
    middle = pd.DatetimeIndex([train.index[72 + 48], train.index[72 + 144]])
    assert_close(cond[3], season_features(middle))


def test_yule_walker_recovers():
    A = torch.tensor([[[.6, .2], [-.1, .5]], [[.1, 0], [0, -.3]]]).double()
    u = _run(A, randn(100_000, 2))
    gamma = torch.stack([u[h:].T @ u[:len(u) - h] / len(u) for h in range(3)])
    found, root = _yule_walker(gamma)
    assert (found - A).abs().max() < .02 and (root @ root.T - torch.eye(2)).abs().max() < .03


def test_impulse():
    assert_close(_impulse(torch.tensor([.5]), 8), .5 ** torch.arange(8, dtype=torch.float64))


def test_hourly_features_are_orthogonal():
    rows = _hourly_features(pd.date_range("2021-01-01", "2021-12-31 23:00", freq="h"))
    gram = rows.T @ rows / len(rows)
    assert rows.shape[1] == 63 and (gram - gram.diag().diag()).abs().max() < .01


def test_logvar_of_known_noise():
    rows = _hourly_features(pd.date_range("2001-01-01", periods=40_000, freq="h"))
    w = torch.zeros(63, 1, dtype=torch.float64)
    w[:3, 0] = torch.tensor([-1., .5, .3])
    squares = (rows @ w).exp() * randn(40_000, 1).square()
    assert (_fit_logvar(rows, squares) - w).abs().max() < .1


def test_condition():
    x = randn(500, 6).float()
    one = torch.eye(6)[:, :1]
    moved = condition(x, one, torch.tensor([3.]), 0.)
    assert_close(moved[:, 0], torch.full((500,), 3.))
    assert_close(condition(x, one, torch.tensor([3.]), 1e9), x, rtol=0, atol=1e-5)
    for wrong in [dict(draws=x[0]), dict(M=one[:5]), dict(values=torch.zeros(2)), dict(draws=x[:2]), dict(values=torch.tensor([torch.nan]))]:
        with pytest.raises(ValueError, match=next(iter(wrong))): condition(**dict(draws=x, M=one, values=torch.zeros(1)) | wrong)


def test_whole_degrees():
    series = hourly(np.round(made_phoenix(years=3).to_numpy()), "1980-01-01", "C")
    torch.manual_seed(0)
    model = SeasonalVAE(filters=4, latent=2, memory=1, lags=4)
    model.learn(series, epochs=1, stride=240, hours=192)
    assert model.generate(series.index[:100]).notna().all()
