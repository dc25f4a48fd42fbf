"""What must hold for any input, tried on many."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from vae_notes.core import check_tensor, generator, integrate, normal_expectation
from vae_notes.elbo import Elbo, LinearGaussian, log_mean_exp, ppca
from vae_notes.gradients import reparameterize
from vae_notes.kl import bound_logvar, kl_bernoulli, kl_mvn, kl_normal
from vae_notes.likelihoods import BernoulliLikelihood, GaussianLikelihood, log_bernoulli, log_normal

settings.register_profile("book", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("book")

seeds = st.integers(0, 2**32)
sizes = st.integers(1, 6)
small = st.floats(-5, 5)
probabilities = st.floats(.01, .99)


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- core ---

@given(seeds)
def test_a_seed_always_gives_the_same_numbers(seed):
    assert torch.equal(torch.rand(4, generator=generator(seed)), torch.rand(4, generator=generator(seed)))


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), seeds)
def test_good_tensors_pass_untouched(shape, seed):
    x = randn(seed, *shape)
    assert check_tensor(x, "x", shape) is x
    assert check_tensor(x, "x", [None] * len(shape)) is x


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), seeds, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_one_bad_entry_is_found_and_named(shape, seed, bad):
    x = randn(seed, *shape)
    at = tuple(int(torch.randint(n, (), generator=generator(seed))) for n in shape)
    x[at] = bad
    with pytest.raises(ValueError, match="weights: .* 1 NaN or infinite") as error: check_tensor(x, "weights")
    assert str(at) in str(error.value)


@given(sizes, sizes)
def test_a_wrong_shape_is_named(n, m):
    with pytest.raises(ValueError, match=rf"x: expected shape \(any, {m + 1}\), got \({n}, {m}\)"):
        check_tensor(torch.zeros(n, m), "x", (None, m + 1))


@given(small, st.floats(0, 3), st.lists(small, min_size=1, max_size=4))
def test_quadrature_is_linear_and_exact_for_cubics(mu, sigma, c):
    moments = [1, mu, mu**2 + sigma**2, mu**3 + 3 * mu * sigma**2]
    value = normal_expectation(lambda z: sum(a * z**k for k, a in enumerate(c)), mu, sigma, n_nodes=2)
    assert_close(value.item(), float(sum(a * m for a, m in zip(c, moments))), rtol=1e-9, atol=1e-9)


@given(small, st.floats(.1, 5))
def test_an_integral_splits_at_any_point(low, width):
    f, middle, high = torch.cos, low + width / 3, low + width
    parts = integrate(f, low, middle) + integrate(f, middle, high)
    assert_close(parts, integrate(f, low, high), rtol=0, atol=1e-5)


# --- likelihoods ---

@given(seeds, sizes, sizes)
def test_log_normal_agrees_with_torch(seed, n, d):
    x, mu, logvar = randn(seed, 3, n, d)
    assert_close(log_normal(x, mu, logvar), Normal(mu, (.5 * logvar).exp()).log_prob(x))


@given(seeds, sizes, st.floats(1, 200))
def test_log_bernoulli_agrees_with_torch(seed, d, scale):
    logits = scale * randn(seed, d)
    x = (randn(seed + 1, d) > 0).double()
    assert_close(log_bernoulli(x, logits), Bernoulli(logits=logits).log_prob(x))


@given(st.floats(-1e4, 1e4), st.sampled_from([0., 1.]))
def test_log_bernoulli_is_finite_and_never_positive(logit, x):
    value = log_bernoulli(torch.tensor(x), torch.tensor(logit))
    assert value.isfinite() and value <= 0


@given(seeds, sizes, sizes, sizes)
def test_likelihoods_sum_the_event_and_keep_samples(seed, samples, batch, d):
    params, x = randn(seed, samples, batch, d), (randn(seed + 1, batch, d) > 0).double()
    for likelihood in (BernoulliLikelihood(), GaussianLikelihood(.7)):
        log_prob = likelihood.double().log_prob(x, params)
        assert log_prob.shape == (samples, batch)
        assert_close(log_prob, likelihood(params).log_prob(x))


@given(seeds, sizes, st.floats(.05, 5))
def test_units_shift_the_log_density(seed, d, scale):
    x, mu = randn(seed, 2, d)
    shifted = log_normal(scale * x, scale * mu, torch.tensor(2 * math.log(scale), dtype=torch.float64))
    assert_close(shifted, log_normal(x, mu) - math.log(scale))


# --- KL ---

@given(seeds, sizes, sizes)
def test_kl_normal_agrees_with_torch_and_is_not_negative(seed, n, d):
    mu_q, logvar_q, mu_p, logvar_p = randn(seed, 4, n, d)
    q = Independent(Normal(mu_q, (.5 * logvar_q).exp()), 1)
    p = Independent(Normal(mu_p, (.5 * logvar_p).exp()), 1)
    kl = kl_normal(mu_q, logvar_q, mu_p, logvar_p)
    assert_close(kl, kl_divergence(q, p))
    assert (kl >= -1e-12).all()


@given(seeds, sizes, sizes)
def test_kl_of_a_distribution_with_itself_is_zero(seed, n, d):
    mu, logvar = randn(seed, 2, n, d)
    assert_close(kl_normal(mu, logvar, mu, logvar), torch.zeros(n, dtype=torch.float64), rtol=0, atol=1e-12)


@given(seeds, sizes, sizes)
def test_kl_adds_up_over_independent_dimensions(seed, n, d):
    mu, logvar = randn(seed, 2, n, 2 * d)
    parts = kl_normal(mu[:, :d], logvar[:, :d]) + kl_normal(mu[:, d:], logvar[:, d:])
    assert_close(kl_normal(mu, logvar), parts)


@given(seeds, sizes, small, st.floats(.2, 5))
def test_kl_does_not_depend_on_units(seed, d, shift, scale):
    mu_q, logvar_q, mu_p, logvar_p = randn(seed, 4, d)
    dv = 2 * math.log(scale)
    moved = kl_normal(scale * mu_q + shift, logvar_q + dv, scale * mu_p + shift, logvar_p + dv)
    assert_close(moved, kl_normal(mu_q, logvar_q, mu_p, logvar_p))


@given(seeds, sizes)
def test_kl_mvn_agrees_with_torch(seed, d):
    mu_q, mu_p = randn(seed, 2, d)
    a, b = randn(seed + 1, 2, d, d)
    eye = torch.eye(d, dtype=torch.float64)
    cov_q, cov_p = a @ a.T + .1 * eye, b @ b.T + .1 * eye
    expected = kl_divergence(MultivariateNormal(mu_q, cov_q), MultivariateNormal(mu_p, cov_p))
    assert_close(kl_mvn(mu_q, cov_q, mu_p, cov_p), expected, rtol=1e-6, atol=1e-8)


@given(probabilities, probabilities)
def test_kl_bernoulli_agrees_with_torch_and_is_not_negative(p, q):
    p, q = torch.tensor([p, q], dtype=torch.float64)
    assert_close(kl_bernoulli(p, q), kl_divergence(Bernoulli(p), Bernoulli(q)), rtol=1e-7, atol=1e-10)
    assert kl_bernoulli(p, q) >= -1e-12


@given(st.floats(-1e6, 1e6))
def test_a_bounded_log_variance_exponentiates(value):
    x = torch.tensor(value, requires_grad=True)
    bounded = bound_logvar(x)
    bounded.exp().backward()
    assert bounded.exp().isfinite() and bounded.exp() > 0 and x.grad.isfinite()
    if -30 < value < 20: assert bounded == x


# --- the bound ---

@given(seeds, st.integers(1, 30), small)
def test_log_mean_exp_lies_between_mean_and_maximum(seed, k, shift):
    a = randn(seed, k) + 1000 * shift
    value = log_mean_exp(a)
    assert a.mean() - 1e-9 <= value <= a.max() + 1e-9
    assert_close(log_mean_exp(a + 7.), value + 7.)


@given(seeds, sizes, st.integers(1, 3), st.integers(0, 4))
def test_the_exact_elbo_lies_below_the_exact_likelihood(seed, n, latent, extra):
    d = latent + extra
    model = LinearGaussian(randn(seed, d, latent), randn(seed + 1, d), .5)
    x, mu, logvar = randn(seed + 2, n, d), randn(seed + 3, n, latent), randn(seed + 4, n, latent)
    bound = model.elbo(x, mu, logvar)
    assert isinstance(bound, Elbo)
    assert_close(bound.value, bound.log_lik - bound.kl)
    assert (bound.value <= model.log_prob(x) + 1e-9).all()


@given(seeds, st.integers(1, 3))
def test_ppca_beats_every_other_linear_model_we_try(seed, latent):
    x = randn(seed, 40, 4) @ randn(seed + 1, 4, 4)
    best = ppca(x, latent)
    other = LinearGaussian(best.weight + .1 * randn(seed + 2, 4, latent), best.bias, float(best.sigma))
    assert best.log_prob(x).mean() >= other.log_prob(x).mean()


# --- sampling ---

@given(seeds, sizes, sizes)
def test_reparameterized_samples_follow_the_noise(seed, n, d):
    mu, logvar, eps = randn(seed, 3, n, d)
    z = reparameterize(mu, logvar, eps)
    assert_close((z - mu) / (.5 * logvar).exp(), eps)
    again = [reparameterize(mu, logvar, generator=generator(seed)) for _ in range(2)]
    assert torch.equal(*again)
