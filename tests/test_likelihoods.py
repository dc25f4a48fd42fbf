"""Likelihoods beyond what their chapter shows: shapes, types, files, limits."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Categorical, Normal
from torch.testing import assert_close

from vae_notes import generator, load, save
from vae_notes.likelihoods import (BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, Levels,
                                   OptimalGaussianLikelihood, SteppedLikelihood, log_bernoulli, log_normal)

settings.register_profile("book", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("book")
seeds, sizes = st.integers(0, 2**32), st.integers(1, 5)
FIVE = [0., .25, .5, .75, 1.]


def randn(seed, *shape): return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def levels(seed, *shape, values=FIVE):
    return torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), shape, generator=generator(seed))]


# --- the fused paths give what the formula gives ---

@given(seeds, sizes, sizes, st.floats(.05, 20))
def test_one_sigma_leaves_the_sum(seed, n, d, sigma):
    x, mu = randn(seed, n, d), randn(seed + 1, 3, n, d)
    expected = log_normal(x, mu, 2 * math.log(sigma)).sum(-1)
    assert_close(GaussianLikelihood(torch.tensor(sigma, dtype=torch.float64)).log_prob(x, mu), expected)
    assert_close(GaussianLikelihood(sigma, shape=(1,)).log_prob(x, mu), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("n", [0, 1, 4])
def test_a_single_sigma_of_any_shape_keeps_the_batch(shape, n):
    x = randn(0, n, 2, 3)
    log_p = GaussianLikelihood(2., shape=shape).double().log_prob(x, x + 1)
    assert log_p.shape == (n,)
    assert_close(log_p, Normal(1., 2.).log_prob(torch.zeros(n, 6).double()).sum(1), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_fused_path_is_right():
    x, mu = randn(1, 4, 3), randn(2, 4, 3).requires_grad_()
    likelihood = GaussianLikelihood(.7, learn=True).double()
    (g_mu, g_sigma) = torch.autograd.grad(likelihood.log_prob(x, mu).sum(), (mu, likelihood.logvar))
    logvar = likelihood.logvar.detach().clone().requires_grad_()
    expected = torch.autograd.grad(log_normal(x, mu, logvar).sum(), (mu, logvar))
    assert_close((g_mu, g_sigma), expected)


def test_whole_numbers_and_mixed_types_are_as_before():
    with pytest.raises(TypeError, match="floating-point"):
        GaussianLikelihood().log_prob(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3))
    assert GaussianLikelihood().log_prob(torch.ones(2, 3).double(), torch.ones(2, 3)).dtype == torch.float64


@given(seeds, sizes, sizes)
def test_bernoulli_rows_are_sums_of_entries(seed, n, d):
    x, logits = (randn(seed, n, d) > 0).double(), 5 * randn(seed + 1, 2, n, d)
    assert_close(BernoulliLikelihood().log_prob(x, logits), log_bernoulli(x, logits).sum(-1))
    assert_close(BernoulliLikelihood().log_prob(x.bool(), logits), log_bernoulli(x, logits).sum(-1))


def test_bernoulli_takes_extreme_log_odds():
    likelihood, logits = BernoulliLikelihood(), torch.tensor([[-1000., 1000.]])
    assert likelihood.log_prob(torch.tensor([[0., 1.]]), logits).item() == 0
    assert likelihood.log_prob(torch.tensor([[1., 0.]]), logits).item() == -2000


# --- optimal σ ---

@given(seeds, st.integers(2, 6), sizes)
def test_optimal_sigma_is_the_error_of_the_batch(seed, n, d):
    x, mu = randn(seed, n, d), randn(seed + 1, n, d)
    for shape, dims in (((), (0, 1)), ((d,), (0,))):
        likelihood = OptimalGaussianLikelihood(shape=shape, momentum=1., floor=1e-6).double()
        mse = (x - mu).square().mean(dims)
        assert_close(likelihood.log_prob(x, mu), log_normal(x, mu, mse.log()).sum(-1), rtol=1e-5, atol=1e-5)
        assert_close(likelihood.sigma, mse.sqrt(), rtol=1e-5, atol=1e-8)


def test_optimal_sigma_has_a_floor_and_no_gradient():
    likelihood, x = OptimalGaussianLikelihood(floor=.1, momentum=1.), torch.ones(3, 2)
    likelihood.log_prob(x, x.clone().requires_grad_()).sum().backward()
    assert_close(likelihood.sigma, torch.tensor(.1))
    assert not list(likelihood.parameters())


def test_optimal_sigma_stands_still_in_eval_mode():
    likelihood = OptimalGaussianLikelihood(.3).eval()
    x = randn(0, 4, 2).float()
    assert_close(likelihood.log_prob(x, 0 * x), Normal(0., .3).log_prob(x).sum(1))
    assert_close(likelihood.sigma, torch.tensor(.3))


@pytest.mark.parametrize("how, name", [({"floor": 0.}, "floor"), ({"floor": -1.}, "floor"), ({"momentum": 0.}, "momentum"),
                                       ({"momentum": 1.5}, "momentum"), ({"sigma": 0.}, "sigma")])
def test_optimal_sigma_names_what_is_wrong(how, name):
    with pytest.raises(ValueError, match=name): OptimalGaussianLikelihood(**how)


# --- levels ---

@given(seeds, sizes, sizes, st.integers(2, 6))
def test_categories_are_torch_categories(seed, n, d, k):
    values = torch.arange(k) * .5 - 1
    x, params = levels(seed, n, d, values=values.tolist()), randn(seed + 1, 2, n, d * k)
    which = ((x + 1) * 2).long()
    expected = Categorical(logits=params.view(2, n, d, k)).log_prob(which).sum(-1)
    likelihood = CategoricalLikelihood(values)
    assert_close(likelihood.log_prob(x, params), expected)
    assert_close(likelihood(params).log_prob(x), expected)


@given(seeds, sizes, st.floats(.02, 5))
def test_steps_add_up_and_are_areas(seed, d, sigma):
    mu = 2 * randn(seed, 3, d)
    p = SteppedLikelihood(FIVE, torch.tensor(sigma, dtype=torch.float64))(mu).logits.exp()
    assert_close(p.sum(-1), torch.ones(3, d).double())
    t = torch.tensor([.125, .375, .625, .875]).double()
    edges = torch.cat([mu.new_tensor([-math.inf]), t, mu.new_tensor([math.inf])])
    cdf = torch.special.ndtr((edges - mu[..., None]) / sigma)
    assert_close(p, cdf.diff(dim=-1), rtol=1e-4, atol=1e-12)


@given(st.floats(-50, 50), st.sampled_from(FIVE), st.floats(.01, 3))
def test_steps_stay_finite_far_away(mu, value, sigma):
    mu = torch.tensor([[mu]], requires_grad=True)
    log_p = SteppedLikelihood(FIVE, sigma).log_prob(torch.tensor([[value]]), mu)
    log_p.sum().backward()
    assert log_p.isfinite().all() and log_p <= 1e-6 and mu.grad.isfinite().all()


def test_a_mean_further_away_is_less_likely():
    mus = torch.linspace(-3, 4, 71)[:, None]
    log_p = SteppedLikelihood(FIVE, .2).log_prob(torch.full((71, 1), .5), mus)
    below, above = log_p[mus[:, 0] <= .5], log_p[mus[:, 0] >= .5]
    assert (below.diff() > 0).all() and (above.diff() < 0).all()


def test_levels_mean_variance_and_draws():
    d = Levels(torch.tensor(FIVE).double(), randn(3, 4, 2, 5))
    p = d.logits.exp()
    assert_close(d.mean, (p * torch.tensor(FIVE)).sum(-1))
    assert_close(d.variance, (p * (torch.tensor(FIVE) - d.mean[..., None])**2).sum(-1))
    assert d.sample().shape == (4, 2) and d.sample((7,)).shape == (7, 4, 2)


@pytest.mark.parametrize("values", [[1.], [0., 0.], [1., 0.], [[0., 1.]], []])
def test_values_must_increase(values):
    for kind in (CategoricalLikelihood, SteppedLikelihood):
        with pytest.raises(ValueError, match="values"): kind(values)


def test_a_value_that_is_none_of_them_is_named():
    likelihood = CategoricalLikelihood(FIVE)
    with pytest.raises(ValueError, match=r"got 0\.4"): likelihood.check(torch.tensor([[0., .4]]))
    with pytest.raises(ValueError, match="params"): likelihood.log_prob(torch.zeros(2, 3), torch.zeros(2, 14))


# --- files ---

KINDS = {
    "optimal": lambda: OptimalGaussianLikelihood(.5, (3,), .01, .2),
    "categories": lambda: CategoricalLikelihood(FIVE),
    "steps": lambda: SteppedLikelihood(FIVE, .3, learn=True, shape=(3,)),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_a_saved_likelihood_comes_back(make, tmp_path):
    likelihood = make()
    x = levels(0, 6, 3).float()
    params = torch.randn(6, 15 if type(likelihood) is CategoricalLikelihood else 3, generator=generator(1))
    likelihood.log_prob(x, params)  # moves a running σ
    save(likelihood, tmp_path / "likelihood.safetensors")
    again = load(tmp_path / "likelihood.safetensors")
    assert type(again) is type(likelihood)
    assert torch.equal(again.eval().log_prob(x, params), likelihood.eval().log_prob(x, params))
