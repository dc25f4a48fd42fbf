"""What a user of the denoisers relies on, beyond what their chapter shows."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close

from vae_notes.autoencoder import Autoencoder, mlp
from vae_notes.core import generator
from vae_notes.denoising import (DenoisingAutoencoder, DilatedConv, GaussianNoise, MaskingNoise, ResidualDenoiser, SaltAndPepper,
                                 WienerFilter, blend, clock, masking_matrix, wiener_matrix)
from vae_notes.files import load, save
from vae_notes.training import fit

CORRUPTIONS = [GaussianNoise(.5), MaskingNoise(.3, value=2.), SaltAndPepper(.3, low=-1., high=3.)]
every_corruption = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: type(c).__name__)
quick = settings(max_examples=25, deadline=None, derandomize=True)


def rows(n: int = 50, features: int = 6, seed: int = 0) -> torch.Tensor:
    mix = torch.randn(features, features, generator=generator(99))
    return 5 + torch.randn(n, features, generator=generator(seed)) @ mix


def dae(corruption: nn.Module | None = None, seed: int = 0) -> DenoisingAutoencoder:
    torch.manual_seed(seed)
    return DenoisingAutoencoder(mlp([6, 8, 3]), mlp([3, 8, 6]), corruption or GaussianNoise(.5))


def residual(seed: int = 0, trained: bool = True) -> ResidualDenoiser:
    torch.manual_seed(seed)
    model = ResidualDenoiser(WienerFilter.fit(rows()), DilatedConv(5, width=4, dilations=(1, 2)), .5, 2.)
    if trained: nn.init.normal_(model.net.last.weight)
    return model


# Corruptions

@every_corruption
@quick
@given(seed=st.integers(0, 2**40), shape=st.lists(st.integers(1, 5), max_size=3))
def test_a_generator_repeats_the_noise_and_leaves_the_global_one_alone(corruption, seed, shape):
    x = torch.randn(shape, generator=generator(1))
    before, kept = torch.get_rng_state(), x.clone()
    once, again = (corruption(x, generator(seed)) for _ in range(2))
    assert torch.equal(once, again) and once.shape == x.shape
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(x, kept)


@every_corruption
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_stays(corruption, dtype):
    assert corruption(torch.zeros(3, dtype=dtype)).dtype == dtype


@every_corruption
def test_without_a_generator_the_global_seed_counts(corruption):
    x = torch.randn(4, 5)
    torch.manual_seed(3); once = corruption(x)
    torch.manual_seed(3); assert torch.equal(corruption(x), once)
    assert not torch.equal(corruption(x), once)


@every_corruption
def test_noise_stays_on_in_evaluation(corruption):
    x = torch.full((20, 20), .5)
    assert not torch.equal(corruption.eval()(x), x)


@pytest.mark.parametrize("nothing", [GaussianNoise(0), MaskingNoise(0), SaltAndPepper(0)])
def test_level_zero_changes_nothing(nothing):
    x = torch.rand(30, 30)
    assert torch.equal(nothing(x), x)


def test_level_one_leaves_nothing():
    x = torch.full((40, 40), 7.)
    assert (MaskingNoise(1, value=-2.)(x) == -2).all()
    assert set(SaltAndPepper(1, low=3., high=4.)(x).unique().tolist()) == {3., 4.}


@quick
@given(rate=st.floats(.05, .95), seed=st.integers(0, 10**6))
def test_the_share_that_is_touched(rate, seed):
    x, n = torch.full((20_000,), 7.), 20_000
    bound = 5 * math.sqrt(n * rate * (1 - rate))
    assert abs((MaskingNoise(rate)(x, generator(seed)) == 0).sum() - n * rate) < bound
    y = SaltAndPepper(rate)(x, generator(seed))
    assert abs((y != 7).sum() - n * rate) < bound
    for v in (0, 1): assert abs((y == v).sum() - n * rate / 2) < 5 * math.sqrt(n * rate / 2)


@quick
@given(sigma=st.floats(.01, 30.), seed=st.integers(0, 10**6))
def test_the_size_of_gaussian_noise(sigma, seed):
    n = 20_000
    noise = GaussianNoise(sigma)(torch.zeros(n, dtype=torch.float64), generator(seed)) / sigma
    assert abs(noise.mean()) < 5 / n**.5
    assert abs(noise.square().mean() - 1) < 5 * (2 / n)**.5


def test_entries_are_damaged_one_by_one():
    lost = (MaskingNoise(.5)(torch.ones(20_000, 2), generator(0)) == 0).double()
    assert abs(torch.corrcoef(lost.T)[0, 1]) < 5 / 20_000**.5


@pytest.mark.parametrize("make, error, message", [
    (lambda: GaussianNoise(-.1), ValueError, "sigma"), (lambda: GaussianNoise(math.inf), ValueError, "sigma"),
    (lambda: GaussianNoise(math.nan), ValueError, "sigma"), (lambda: GaussianNoise(True), TypeError, "sigma"),
    (lambda: GaussianNoise("1"), TypeError, "sigma"), (lambda: GaussianNoise(None), TypeError, "sigma"),
    (lambda: MaskingNoise(-.1), ValueError, "rate"), (lambda: MaskingNoise(1.1), ValueError, "rate"),
    (lambda: MaskingNoise(.1, value="0"), TypeError, "value"), (lambda: MaskingNoise(.1, math.nan), ValueError, "value"),
    (lambda: SaltAndPepper(-.1), ValueError, "rate"), (lambda: SaltAndPepper(2), ValueError, "rate"),
    (lambda: SaltAndPepper(.1, low=None), TypeError, "low"), (lambda: SaltAndPepper(.1, high="1"), TypeError, "high"),
    (lambda: DenoisingAutoencoder(nn.Linear(2, 1), nn.Linear(1, 2), abs), TypeError, "corruption"),
    (lambda: DenoisingAutoencoder(abs, nn.Linear(1, 2), GaussianNoise(1)), TypeError, "encoder"),
    (lambda: wiener_matrix(torch.eye(3)[:2], 1.), ValueError, "square"), (lambda: wiener_matrix(torch.eye(3), -1), ValueError, "sigma"),
    (lambda: wiener_matrix([[1.]], 1.), TypeError, "cov"), (lambda: masking_matrix(torch.ones(3), .1), ValueError, "cov"),
    (lambda: masking_matrix(torch.eye(3), 1.5), ValueError, "rate"),
    (lambda: WienerFilter.fit(rows(1)), ValueError, "two rows"), (lambda: WienerFilter.fit(rows()[0]), ValueError, "x"),
    (lambda: WienerFilter.fit(rows() * math.nan), ValueError, "NaN"),
    (lambda: ResidualDenoiser(WienerFilter.fit(rows()), abs), TypeError, "net"),
    (lambda: ResidualDenoiser(abs, nn.Identity()), TypeError, "linear"),
    (lambda: ResidualDenoiser(WienerFilter.fit(rows()), nn.Identity(), 0., 1.), ValueError, "low"),
    (lambda: ResidualDenoiser(WienerFilter.fit(rows()), nn.Identity(), 2., 1.), ValueError, "low"),
    (lambda: residual().denoise(rows(3), 0.), ValueError, "sigma"), (lambda: residual().denoise(rows(3), -1.), ValueError, "sigma"),
    (lambda: residual().denoise(rows(3)[:, :5], 1.), ValueError, "x"),
    (lambda: residual().denoise(rows(3), 1., torch.zeros(2, 6, 2)), ValueError, "known"),
    (lambda: blend(abs, torch.ones(9), length=10, stride=2), ValueError, "length"),
    (lambda: blend(abs, torch.ones(9), length=3, stride=0), ValueError, "stride"),
])
def test_errors_have_types_and_names(make, error, message):
    with pytest.raises(error, match=message): make()


# The denoising autoencoder

@quick
@given(seed=st.integers(0, 1000))
def test_without_noise_it_is_the_autoencoder(seed):
    m, x = dae(MaskingNoise(0.), seed), rows(7, seed=seed)
    plain = Autoencoder(m.encoder, m.decoder)
    for name, value in plain.terms(x).items(): assert torch.equal(m.terms(x)[name], value)
    assert torch.equal(m.denoise(x), plain.reconstruct(x))


@every_corruption
def test_the_target_is_clean(corruption):
    """By hand: the network sees y, the likelihood x."""
    m, x = dae(corruption), rows(9)
    y = corruption(x, generator(5))
    answer = m.decoder(m.encoder(y))
    terms = m.terms(x, generator(5))
    assert_close(terms["mse"], (answer - x).square().mean())
    assert_close(terms["loss"], (answer - x).square().sum(1).mean() / 2 + 3 * math.log(2 * math.pi))


@quick
@given(n=st.integers(1, 30), cut=st.integers(0, 30))
def test_a_row_is_denoised_alike_in_any_company(n, cut):
    m, x = dae(), rows(n)
    whole = m.denoise(x)
    assert whole.shape == x.shape and torch.equal(whole, m.denoise(x))
    assert_close(torch.cat([m.denoise(p) for p in (x[:cut], x[cut:]) if len(p)]), whole)


def test_asking_leaves_no_trace():
    m, x = dae().train(), rows()
    state = torch.get_rng_state()
    m.check(x), m.denoise(x)
    assert torch.equal(torch.get_rng_state(), state) and m.training


def test_training_repeats_itself():
    def trained():
        m = dae()
        fit(m, rows(), epochs=3, batch_size=16, seed=4, progress=False)
        return m.state_dict()
    first, second = trained(), trained()
    assert all(torch.equal(first[k], second[k]) for k in first)


# Linear answers

@quick
@given(sigma=st.floats(.05, 20.), seed=st.integers(0, 100))
def test_no_small_change_improves_the_wiener_matrix(sigma, seed):
    C = torch.cov(rows(40, seed=seed).double().T)
    W, eye = wiener_matrix(C, sigma), torch.eye(6, dtype=C.dtype)
    def error(W): return ((eye - W) @ C @ (eye - W).T).trace() + sigma**2 * W.square().sum()
    step = torch.randn(6, 6, generator=generator(seed), dtype=C.dtype) * .01
    assert error(W) <= error(W + step) + 1e-12
    f = WienerFilter.fit(rows(40, seed=seed).double())
    assert f.error(sigma).item() <= min(sigma**2, f.variances.mean().item()) + 1e-9


def test_limits_of_the_filters():
    C = torch.cov(rows().double().T)
    assert_close(wiener_matrix(C, 0), torch.eye(6, dtype=C.dtype))
    assert wiener_matrix(C, 1e6).abs().max() < 1e-6
    assert_close(masking_matrix(C, 0), torch.eye(6, dtype=C.dtype))
    assert_close(masking_matrix(C, 1) * C.diag(), C)
    alone = torch.diag(C.diag())  # independent entries: what is left is as it was
    assert_close(masking_matrix(alone, .4), torch.eye(6, dtype=C.dtype))


@quick
@given(shift=st.floats(-50, 50), scale=st.floats(.1, 10))
def test_units_do_not_matter(shift, scale):
    x = rows().double()
    y = GaussianNoise(.7)(x, generator(0))
    one, other = WienerFilter.fit(x), WienerFilter.fit(scale * x + shift)
    assert_close(other(scale * y + shift, .7 * scale), scale * one(y, .7) + shift, rtol=1e-6, atol=1e-6)
    assert_close(other.error(.7 * scale), scale**2 * one.error(.7))


def test_each_row_may_have_its_own_noise():
    f, y = WienerFilter.fit(rows()), rows(3, seed=2)
    sigma = torch.tensor([[.1], [1.], [9.]])
    for i in range(3):
        assert_close(f(y, sigma)[i:i + 1], f(y[i:i + 1], sigma[i].item()))
        assert_close(f.error(sigma)[i], f.error(sigma[i].item()))


def test_constant_columns_are_no_trouble():
    x = rows(); x[:, 2] = 4.
    answer = WienerFilter.fit(x)(GaussianNoise(1.)(x), 1.)
    assert_close(answer[:, 2], x[:, 2], atol=1e-3, rtol=0)
    one = WienerFilter.fit(torch.randn(20, 1))
    assert one(torch.zeros(3, 1), 1.).shape == (3, 1)


# The residual denoiser

def test_untrained_it_is_the_filter_it_was_given():
    m, known = residual(trained=False), torch.randn(50, 6, 2)
    assert_close(m.denoise(rows(), .8, known), m.linear(rows(), .8))


def test_residual_loss_by_hand():
    m, x, known = residual(), rows(5), torch.randn(5, 6, 2, generator=generator(0))
    torch.manual_seed(1)
    terms = m.terms(x, known)
    torch.manual_seed(1)
    sigma = .5 * 4**torch.rand(5, 1)
    answer = m(x + sigma * torch.randn_like(x), sigma, known)
    tau = m.linear.error(sigma).sqrt().expand_as(x)
    expected = -torch.distributions.Normal(answer, tau).log_prob(x).sum(1).mean()
    assert_close(terms["loss"], expected)
    assert_close(terms["ratio"], ((answer - x) / tau).square().mean())


def test_noise_levels_lie_between_low_and_high():
    seen = []
    class Spy(WienerFilter):
        def forward(self, y, sigma): seen.append(sigma); return super().forward(y, sigma)
    f = WienerFilter.fit(rows())
    m = ResidualDenoiser(Spy(f.mean, f.variances, f.directions), DilatedConv(3, 4, (1,)), .5, 8.)
    m.terms(rows(4000))
    logs = (seen[0] / .5).log() / math.log(16)
    assert logs.min() >= 0 and logs.max() <= 1
    assert abs(logs.mean() - .5) < 5 / math.sqrt(12 * 4000)


@quick
@given(n=st.integers(1, 20), cut=st.integers(0, 20))
def test_rows_know_nothing_of_each_other(n, cut):
    m, y, known = residual(), rows(n), torch.randn(n, 6, 2)
    whole = m.denoise(y, 1., known)
    parts = [m.denoise(y[i], 1., known[i]) for i in (slice(0, cut), slice(cut, None)) if len(y[i])]
    assert_close(torch.cat(parts), whole)


def test_fit_lowers_the_residual_loss():
    x = rows(400).square()  # not normal: there is something to win
    torch.manual_seed(0)
    m = ResidualDenoiser(WienerFilter.fit(x), DilatedConv(3, 8, (1, 2)), 5., 20.)
    history = fit(m, x, epochs=20, batch_size=50, lr=1e-2, progress=False)
    assert history["ratio"][-1] < .97 * history["ratio"][0]


def test_clock_has_periods_and_tells_hours_apart():
    ticks = clock(torch.arange(24 * 365))
    assert ticks.shape == (24 * 365, 8) and ticks.abs().max() <= 1
    assert torch.cdist(ticks[:24], ticks[:24]).add(torch.eye(24) * 9).min() > .1
    year = clock(torch.tensor([0., 365.2425 * 24, 365.2425 * 24 * 50]))
    for column in (2, 3, 6, 7): assert_close(year[:, column], year[:1, column].expand(3), atol=1e-4, rtol=0)


@quick
@given(time=st.integers(2, 60), length=st.integers(2, 60), stride=st.integers(1, 60))
def test_blend_covers_every_step_once_in_sum(time, length, stride):
    if not stride < length <= time: return
    x, other = torch.randn(time, generator=generator(0)), torch.arange(time)
    assert_close(blend(lambda y: y, x, length=length, stride=stride), x)
    both = blend(lambda y, t: y + t, x, other, length=length, stride=stride)
    assert_close(both, x + other)


def test_blend_trusts_the_middle_of_a_window():
    far = torch.linspace(-1, 1, 11).abs()
    answer = blend(lambda y: far.expand_as(y), torch.zeros(101), length=11, stride=1)
    assert (answer[11:-11] < .5).all()  # plain averaging would give .545


# Files

@pytest.mark.parametrize("make", [*(lambda c=c: c for c in CORRUPTIONS), dae, lambda: WienerFilter.fit(rows()),
                                  lambda: DilatedConv(3, 4, (1, 5)), residual])
def test_saved_and_loaded(make, tmp_path):
    model = make()
    save(model, tmp_path / "m.safetensors")
    back = load(tmp_path / "m.safetensors")
    assert type(back) is type(model)
    for k, v in model.state_dict().items(): assert torch.equal(back.state_dict()[k], v)
    for name in ("sigma", "rate", "value", "low", "high", "dilations"):
        assert getattr(back, name, None) == getattr(model, name, None)


def test_a_loaded_denoiser_answers_the_same(tmp_path):
    for model, ask in [(dae(), lambda m: m.denoise(rows())), (residual(), lambda m: m.denoise(rows(3), 1., torch.ones(3, 6, 2)))]:
        save(model, tmp_path / "m.safetensors")
        assert torch.equal(ask(load(tmp_path / "m.safetensors")), ask(model))


def test_the_package_does_not_need_scipy():
    code = "import sys, vae_notes.denoising; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
