"""What a user of the table's VAE relies on, beyond what its chapter shows."""

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from vae_notes import fit, generator, load, save
from vae_notes.likelihoods import CategoricalLikelihood, GaussianLikelihood, OptimalGaussianLikelihood, SteppedLikelihood
from vae_notes.tabular_vae import BentErrors, Norm, TableSampler, TabularDecoder, TabularVAE, hidden_normal, kept, sigma_of_weight

FIVE = torch.linspace(0, 1, 5)
LIKELIHOODS = {
    "fixed": lambda: None,
    "learned": lambda: GaussianLikelihood(.3, learn=True),
    "each": lambda: GaussianLikelihood(.3, learn=True, shape=(12,)),
    "best": lambda: OptimalGaussianLikelihood(.3),
    "stepped": lambda: SteppedLikelihood(FIVE, .3, learn=True),
    "categorical": lambda: CategoricalLikelihood(FIVE),
}
every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS.keys())


def codes(n=64, features=12, bins=5, seed=0):
    """Columns that follow two hidden numbers."""
    g = generator(seed)
    hidden = torch.randn(n, 2, generator=g) @ torch.randn(2, features, generator=generator(99))
    x = torch.special.ndtr((hidden + .5 * torch.randn(n, features, generator=g)) / 1.5)
    return (x * bins).clamp(max=bins - 1).to(torch.uint8)


def model(likelihood=None, seed=0, **more):
    torch.manual_seed(seed)
    return TabularVAE(12, 3, likelihood=likelihood, **more)


@every_likelihood
@pytest.mark.parametrize("hidden", [None, 7])
def test_saved_and_loaded(likelihood, hidden, tmp_path):
    m, x = model(likelihood(), hidden=hidden), codes()
    fit(m, x, epochs=1, batch_size=16, progress=False)
    save(m, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert torch.equal(again.score(x, 5), m.score(x, 5))
    assert (again.hidden, again.slope, again.folded) == (m.hidden, m.slope, m.folded)


def test_sampler_saved_and_loaded(tmp_path):
    sampler = TableSampler.learn(model(), codes(200))
    save(sampler, tmp_path / "s.safetensors")
    again = load(tmp_path / "s.safetensors")
    assert torch.equal(again.sample(20, generator(1)), sampler.sample(20, generator(1)))


@every_likelihood
def test_every_method_takes_codes_and_values_alike(likelihood):
    m, x = model(likelihood()).eval(), codes()
    for f in (m.embed, m.reconstruct, lambda x: m.score(x, 5), lambda x: m.elbo(x, generator=generator(0)).value):
        assert_close(f(x), f(x / 4))
    assert_close(m.terms(x, generator=generator(0)), m.terms(x / 4, generator=generator(0)))


@every_likelihood
def test_training_lowers_the_loss(likelihood):
    history = fit(model(likelihood()), codes(256), epochs=12, batch_size=32, lr=5e-3, progress=False)
    assert history["loss"][-1] < history["loss"][0]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(2, 600), features=st.integers(1, 9), latent=st.integers(1, 4), seed=st.integers(0, 99))
def test_folded_and_plain_agree(n, features, latent, seed):
    torch.manual_seed(seed)
    a = TabularVAE(features, latent, folded=False).double()
    with torch.no_grad():
        for p in a.parameters(): p.add_(.1 * torch.randn_like(p))
    b = copy.deepcopy(a)
    b.folded = True
    x = codes(n, features, seed=seed)
    for m in (a, b): m.terms(x, kl_weight=.7, generator=generator(seed))["loss"].backward()
    for p, q in zip(a.parameters(), b.parameters()): assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-5)
    for p, q in zip(a.buffers(), b.buffers()): assert_close(p, q)


def test_folded_only_where_it_holds():
    x = codes()
    for m, wanted in [(model(), True), (model(folded=False), False), (model().eval(), False),
                      (model(GaussianLikelihood(.3, shape=(12,))), False), (model(CategoricalLikelihood(FIVE)), False),
                      (model(OptimalGaussianLikelihood(.3)), True)]:
        assert m._foldable(m.as_values(x)) is wanted
    assert not model()._foldable((x / 4)[:1])
    assert not model()._foldable((x / 4).requires_grad_())


def test_gradient_of_the_data_is_there():
    x = (codes() / 4).requires_grad_()
    model().terms(x)["loss"].backward()
    assert x.grad.abs().sum() > 0


def test_free_bits_and_warmup():
    m, x = model(), codes(100)
    t = m.terms(x, kl_weight=0., generator=generator(0))
    assert_close(t["loss"], t["distortion"])
    free = m.terms(x, free_bits=50., generator=generator(0))
    assert_close(free["loss"], free["distortion"] + 3 * 50.)
    fit(m, x, epochs=2, kl_warmup=1., free_bits=.1, progress=False)


@pytest.mark.parametrize("rows", [1, 2, 33, 65])
def test_any_number_of_rows_is_trained_on(rows):
    for folded in (True, False):
        history = fit(model(folded=folded), codes(rows), epochs=2, batch_size=32, progress=False)
        assert torch.tensor(history["loss"]).isfinite().all()


def test_norm_of_one_row_uses_the_averages():
    norm = Norm(3)
    norm.running_mean.fill_(2.), norm.running_var.fill_(4.)
    assert_close(norm(torch.tensor([[4., 2., 0.]])), torch.tensor([[1., 0., -1.]]), atol=1e-4, rtol=0.)
    assert_close(norm.running_mean, torch.full((3,), 2.))


def test_bfloat16_is_close_and_trains():
    m = model()
    x = codes(256)
    exact = m.terms(x, generator=generator(0))["loss"].item()
    with torch.autocast("cpu", torch.bfloat16): near = m.terms(x, generator=generator(0))["loss"]
    assert near.dtype == torch.float32 and abs(near.item() - exact) < .02 * abs(exact)
    history = fit(m, x, epochs=10, batch_size=64, lr=5e-3, precision="bfloat16", progress=False)
    assert history["loss"][-1] < history["loss"][0]
    assert all(p.dtype == torch.float32 for p in m.parameters())


def test_the_same_bits_twice():
    runs = []
    for _ in range(2):
        m = model()
        fit(m, codes(200), epochs=2, batch_size=64, progress=False, seed=3)
        runs.append(m.state_dict())
    for name in runs[0]: assert torch.equal(runs[0][name], runs[1][name])


@pytest.mark.parametrize("bins", [2, 5, 7, 255])
def test_other_numbers_of_bins(bins):
    m = model(bins=bins)
    x = codes(100, bins=bins)
    assert_close(m.as_values(x).max(), torch.tensor(1.), atol=.2, rtol=0.)
    assert_close(m.as_values(x), x / (bins - 1))
    fit(m, x, epochs=1, progress=False)
    levels = m.as_bins(x)
    assert levels.likelihood.values.shape == (bins,)
    drawn = levels.sample(50, generator=generator(0)) * (bins - 1)
    assert_close(drawn, drawn.round(), atol=1e-3, rtol=0.)


@pytest.mark.parametrize("wrong, error, words", [
    (dict(bins=1), ValueError, "bins: expected ≥ 2"),
    (dict(bins=256), ValueError, "bins: expected ≤ 255"),
    (dict(kl_weight=0.), ValueError, "kl_weight: expected > 0"),
    (dict(kl_weight=float("nan")), ValueError, "kl_weight"),
    (dict(latent_dim=0), ValueError, "latent_dim: expected ≥ 1"),
    (dict(n_features=2.5), TypeError, "n_features"),
    (dict(hidden=-1), ValueError, "hidden: expected ≥ 1"),
])
def test_bad_arguments(wrong, error, words):
    with pytest.raises(error, match=words): TabularVAE(**{"n_features": 12, "latent_dim": 3} | wrong)


@pytest.mark.parametrize("x, error, words", [
    (torch.full((4, 12), 5, dtype=torch.uint8), ValueError, "codes 0…4, got 5"),
    (torch.zeros(4, 11, dtype=torch.uint8), ValueError, r"\(any, 12\)"),
    (torch.zeros(0, 12, dtype=torch.uint8), ValueError, r"\(any, 12\)"),
    (torch.zeros(12, dtype=torch.uint8), ValueError, r"\(any, 12\)"),
    (torch.zeros(4, 12, dtype=torch.int64), TypeError, "torch.uint8"),
    (torch.full((4, 12), torch.nan), ValueError, "NaN"),
    (torch.zeros(4, 12).double(), TypeError, "float32"),
    ([[0] * 12], TypeError, "torch.Tensor"),
])
def test_bad_tables(x, error, words):
    m = model()
    for f in (m.check, m.embed, lambda x: m.score(x, 3)):
        with pytest.raises(error, match=words): f(x)


def test_fit_asks_first():
    with pytest.raises(ValueError, match="codes 0…4, got 7"): fit(model(), torch.full((4, 12), 7, dtype=torch.uint8), epochs=1)


def test_what_has_no_bins_says_so():
    with pytest.raises(TypeError, match="as_bins"): model().denoise(codes(), .1)
    with pytest.raises(TypeError, match="Gaussian"): model(CategoricalLikelihood(FIVE)).as_bins()
    with pytest.raises(TypeError, match="one σ"): model(CategoricalLikelihood(FIVE)).notes_units(1., 1.)
    with pytest.raises(TypeError, match="one σ"): model(GaussianLikelihood(.3, shape=(12,))).notes_units(1., 1.)
    with pytest.raises(TypeError, match="Gaussian"): TableSampler.learn(model(CategoricalLikelihood(FIVE)), codes())


def test_sampler_refuses():
    x = codes(50)
    x[:, 3] = 2
    with pytest.raises(ValueError, match="column 3 is constant"): TableSampler.learn(model(), x)
    with pytest.raises(TypeError, match="torch.uint8"): hidden_normal(x / 4, 5)
    with pytest.raises(ValueError, match="≥ 2 rows"): hidden_normal(codes(1), 5)
    with pytest.raises(ValueError, match="codes 0…3"): hidden_normal(codes(50), 4)
    with pytest.raises(ValueError, match="n: expected"): TableSampler.learn(model(), codes(50)).sample(0)


def test_sampler_keeps_shares_and_pairs():
    x = codes(4000)
    m = model(OptimalGaussianLikelihood(.3), hidden=16, slope=1.)
    fit(m, x, epochs=3, batch_size=100, progress=False)
    made = TableSampler.learn(m, x).sample(20_000, generator(0))
    assert made.dtype == torch.uint8 and made.max() <= 4
    share = lambda t: torch.stack([(t == k).float().mean(0) for k in range(5)])
    assert (share(made) - share(x)).abs().max() < .02
    assert (torch.corrcoef(made.float().T) - torch.corrcoef(x.float().T)).abs().max() < .08


def test_sampler_with_rare_and_missing_bins():
    x = codes(500)
    x[:, 0] = (torch.arange(500) < 3).to(torch.uint8)
    x[:, 1] = 4 * (x[:, 1] > 2).to(torch.uint8)
    made = TableSampler.learn(model(), x).sample(5000, generator(0))
    assert set(made[:, 1].unique().tolist()) == {0, 4}
    assert set(made[:, 0].unique().tolist()) <= {0, 1} and (made[:, 0] == 1).float().mean() < .03


def test_denoising_mends_what_cannot_be():
    x = codes(3000)
    m = TabularVAE(12, 2, 24, likelihood=OptimalGaussianLikelihood(.3))
    fit(m, x, epochs=20, batch_size=100, lr=5e-3, progress=False)
    hit = torch.rand(x.shape, generator=generator(5)) < .2
    noisy = torch.where(hit, torch.randint(5, x.shape, generator=generator(6), dtype=torch.uint8), x)
    judge = m.as_bins(x)
    nu = judge.noise_rates(noisy)
    assert nu.shape == (12,) and (nu >= 0).all() and (nu <= 1).all() and .05 < nu.mean() < .35
    error = lambda y: (y - x / 4).square().mean()
    assert error(judge.denoise(noisy, nu)) < .8 * error(noisy / 4)
    share = kept(judge.bin_chances(noisy)[0], .2)
    assert share[hit & (noisy != x)].mean() < share[~hit].mean() - .1


def test_notes_units():
    m, x = model(hidden=6), codes(100)
    m.eval()
    t = m.terms(x, generator=generator(0))
    mse, loss = m.notes_units(t["distortion"], t["rate"])
    assert_close(loss - mse, .00025 * t["rate"])
    assert_close(sigma_of_weight(.00025, 12)**2, .0015)


def test_bent_errors_block_by_block():
    g = generator(0)
    for n in (1, 255, 256, 257, 1000):
        h, W, b, x = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((n, 3), (5, 3), (5,), (n, 5)))
        for t in (h, W, b): t.requires_grad_()
        fast = BentErrors.apply(h, W, b, x, .2, torch.float64)
        slow = (F.leaky_relu(h @ W.T + b, .2) - x).square().sum()
        assert_close(fast, slow)
        for a, c in zip(torch.autograd.grad(fast, (h, W, b)), torch.autograd.grad(slow, (h, W, b))): assert_close(a, c)


def test_decoder_keeps_its_averages_when_folded():
    a = TabularDecoder(2, 4, 3).double()
    b = copy.deepcopy(a)
    for _ in range(5):
        z = torch.randn(20, 2, dtype=torch.float64)
        a(z), b.fold(b.first(z))
    z = torch.randn(20, 2, dtype=torch.float64)
    assert_close(a.eval()(z), b.eval()(z))
    assert a.norm.num_batches_tracked == b.norm.num_batches_tracked == 5
