"""What a user of the report relies on, beyond what its chapter shows."""

import math
from dataclasses import replace

import matplotlib
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from vae_notes import VAE, GaussianLikelihood, MLPDecoder, MLPEncoder, StandardNormal, generator
from vae_notes import diagnostics
from vae_notes.diagnostics import (Surgery, active_units, aggregate_log_prob, diagnose, latent_kl, linear_rates,
                                   mutual_information, posteriors)

matplotlib.use("Agg")
some = settings(max_examples=25, deadline=None, derandomize=True)


class Table(nn.Module):
    """Posteriors written by hand: x holds a row's number."""
    event_shape = (1,)

    def __init__(self, mu, logvar):
        super().__init__()
        self.mu, self.logvar = nn.Parameter(mu), nn.Parameter(logvar)

    def forward(self, x): return self.mu[x[:, 0].long()], self.logvar[x[:, 0].long()]


def table(mu, logvar, prior=None):
    """A VAE whose posteriors are these, and its data."""
    latent = mu.shape[1]
    model = VAE(Table(mu, logvar), MLPDecoder(latent, 1, ()).double(), prior or StandardNormal(latent), GaussianLikelihood())
    return model, torch.arange(len(mu), dtype=torch.float64)[:, None]


def codes(n, latent, seed, spread=1.):
    g = generator(seed)
    return (spread * torch.randn(n, latent, generator=g, dtype=torch.float64),
            torch.randn(n, latent, generator=g, dtype=torch.float64) - 1)


def vae(latent=3, features=6, seed=0, **kwargs):
    torch.manual_seed(seed)
    return VAE(MLPEncoder(features, latent, (8,)), MLPDecoder(latent, features, (8,)), **kwargs)


def data(n=50, features=6, seed=0): return (torch.rand(n, features, generator=generator(seed)) > .5).float()


class Moving(nn.Module):
    """A prior that depends on a condition: mean and log-variance."""
    def __init__(self, latent_dim=3):
        super().__init__()
        self.latent_dim = latent_dim
        self.net = nn.Linear(2, 2 * latent_dim)

    def forward(self, cond): return self.net(cond).chunk(2, -1)


class Same(nn.Module):
    """A prior equal to the posterior of the row that the condition names."""
    def __init__(self, mu, logvar):
        super().__init__()
        self.latent_dim, self.table = mu.shape[1], Table(mu, logvar)

    def forward(self, cond): return self.table(cond)


@some
@given(n=st.integers(2, 40), latent=st.integers(1, 4), seed=st.integers(0, 999), spread=st.sampled_from([0., .1, 1., 30.]))
def test_the_parts_of_the_rate(n, latent, seed, spread):
    cut = mutual_information(*table(*codes(n, latent, seed, spread)), n_samples=3, seed=seed)
    assert 0 <= cut.mutual_information <= math.log(n) + 1e-12
    assert cut.upper >= cut.mutual_information - 1e-12
    assert_close(cut.mutual_information + cut.marginal_kl, cut.rate)
    assert cut.error >= 0 and all(math.isfinite(v) for v in cut[:4])


@some
@given(groups=st.integers(1, 6), copies=st.integers(1, 4), seed=st.integers(0, 99))
def test_information_of_separate_groups_is_known(groups, copies, seed):
    if groups * copies < 2: return
    mu = 100. * torch.arange(groups, dtype=torch.float64).repeat(copies)[:, None]
    cut = mutual_information(*table(mu, torch.zeros_like(mu)), seed=seed)
    assert_close(cut.mutual_information, math.log(groups), atol=1e-9, rtol=0)
    assert_close(cut.error, 0., atol=1e-9, rtol=0)
    if copies == 1: assert cut.upper == math.inf, "rows too far apart to say"
    else:
        leave_one_out = math.log((groups * copies - 1) / (copies - 1))
        assert_close(cut.upper, leave_one_out, atol=1e-9, rtol=0)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(n=st.integers(2, 30), latent=st.integers(1, 3), seed=st.integers(0, 999))
def test_information_is_the_mean_log_ratio(n, latent, seed):
    """(21.8) against its definition, the mean of log q(z|x) − log q̄(z), by plain sampling."""
    mu, logvar = codes(n, latent, seed)
    cut = mutual_information(*table(mu, logvar), n_samples=200, seed=seed)
    z = mu + (.5 * logvar).exp() * torch.randn(400, n, latent, generator=generator(seed + 1), dtype=mu.dtype)
    q = Independent(Normal(mu, (.5 * logvar).exp()), 1)
    ratio = q.log_prob(z) - aggregate_log_prob(z.flatten(0, 1), mu, logvar).view(400, n)
    error = (ratio.var(0).mean() / 400 / n).sqrt().item()
    assert abs(ratio.mean().item() - cut.mutual_information) < 5 * math.hypot(error, cut.error)


def test_the_error_is_that_of_the_draws():
    made = table(*codes(12, 2, 5))
    cuts = [mutual_information(*made, n_samples=4, seed=s) for s in range(150)]
    spread = torch.tensor([c.mutual_information for c in cuts]).std().item()
    stated = sum(c.error**2 for c in cuts)**.5 / 150**.5
    assert .8 < spread / stated < 1.25


@some
@given(n=st.integers(1, 40), points=st.integers(1, 30), latent=st.integers(1, 5), seed=st.integers(0, 999))
def test_aggregate_density_is_the_mixture(n, points, latent, seed):
    mu, logvar = codes(n, latent, seed, 2.)
    z = codes(points, latent, seed + 1, 3.)[0]
    mixture = MixtureSameFamily(Categorical(torch.ones(n)), Independent(Normal(mu, (.5 * logvar).exp()), 1))
    assert_close(aggregate_log_prob(z, mu, logvar), mixture.log_prob(z))
    assert aggregate_log_prob(z.float(), mu, logvar).dtype == torch.float64


def test_narrow_posteriors_far_out_keep_their_digits():
    mu, logvar = codes(20, 3, 1, 5.)
    logvar = logvar - 16  # σ about 2e-4
    expected = Independent(Normal(mu, (.5 * logvar).exp()), 1).log_prob(mu) - math.log(20)
    assert_close(aggregate_log_prob(mu, mu, logvar), expected, atol=1e-5, rtol=1e-7)


def test_pieces_give_what_the_whole_gives(monkeypatch):
    mu, logvar = codes(60, 3, 0)
    whole, cut = aggregate_log_prob(mu, mu, logvar), mutual_information(*table(mu, logvar))
    class Small(diagnostics._Mixture):
        def __init__(self, *args): super().__init__(*args); self.at_once = 7
    monkeypatch.setattr(diagnostics, "_Mixture", Small)
    assert_close(aggregate_log_prob(mu, mu, logvar), whole)
    assert_close(torch.tensor(mutual_information(*table(mu, logvar))), torch.tensor(cut))


@pytest.mark.parametrize("rows", [1, 1000, 10**7])
def test_memory_is_bounded(rows):
    mixture = diagnostics._Mixture(torch.zeros(rows, 1), torch.zeros(rows, 1))
    assert mixture.at_once >= 1 and (mixture.at_once == 1 or mixture.at_once * rows <= 2**18)


def test_a_prior_equal_to_each_posterior_leaves_nothing():
    mu, logvar = codes(20, 2, 3)
    model, x = table(mu, logvar, Same(mu.clone(), logvar.clone()))
    assert latent_kl(model, x, x).abs().max() < 1e-12
    assert not active_units(model, x, x).any(), "the means vary only as the prior's do"
    assert abs(mutual_information(model, x, x).mutual_information) < 1e-9
    assert active_units(*table(mu, logvar)).all()


def test_posteriors_are_in_units_of_the_prior():
    torch.manual_seed(3)
    model = vae(prior=Moving())
    x, cond = data(), torch.randn(50, 2, generator=generator(1))
    mu, logvar = posteriors(model, x, cond)
    q, (mu_p, logvar_p) = model.encode(x).base_dist, model.prior(cond)
    assert_close(mu * (.5 * logvar_p).exp().double() + mu_p.double(), q.loc.double(), atol=1e-5, rtol=1e-5)
    assert_close((.5 * (logvar + logvar_p.double())).exp(), q.scale.double(), atol=1e-5, rtol=1e-5)
    assert mu.dtype == torch.float64 and not mu.requires_grad


def test_a_prior_that_overflows_is_bounded_as_in_the_model():
    class Sharp(nn.Module):
        latent_dim = 3
        def forward(self, cond): return cond, torch.full_like(cond, -1000.)
    model, x, cond = vae(prior=Sharp()), data(), torch.zeros(50, 3)
    kl = latent_kl(model, x, cond).sum(1)
    assert kl.isfinite().all()
    assert_close(kl.float(), model.elbo(x, cond).kl.detach(), rtol=1e-4, atol=0)


def test_the_variance_is_over_the_rows_at_hand():
    made = table(torch.tensor([[-.12], [.12]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))
    assert active_units(*made, threshold=.0143).all() and not active_units(*made, threshold=.0145).any()


@some
@given(n=st.integers(2, 30), seed=st.integers(0, 99))
def test_rows_are_treated_alike_in_any_company(n, seed):
    model, x = vae(), data(n, seed=seed)
    whole = latent_kl(model, x)
    assert whole.shape == (n, 3) and (whole >= 0).all()
    assert_close(torch.cat([latent_kl(model, row[None]) for row in x]), whole, atol=1e-5, rtol=1e-4)
    order = torch.randperm(n, generator=generator(seed))
    assert_close(latent_kl(model, x[order]), whole[order], atol=1e-5, rtol=1e-4)
    assert torch.equal(active_units(model, x[order]), active_units(model, x))


def test_the_report_repeats_and_leaves_no_trace():
    model, x = vae().train(), data()
    model.encoder.layers.append(nn.Dropout(.5))
    before, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    a, b, other = diagnose(model, x, n_samples=5), diagnose(model, x, n_samples=5), diagnose(model, x, n_samples=5, seed=1)
    assert repr(a) == repr(b) and a.bound != other.bound and a.distortion != other.distortion
    assert torch.equal(before, torch.get_rng_state()) and all(m.training for m in model.modules())
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(model.parameters(), weights))


def test_the_report_is_what_its_parts_say():
    model, x = vae(beta=3.), data(200)
    report = diagnose(model, x, n_samples=400, seed=2)
    assert report.beta == 3 and report.n_rows == 200 and report.n_samples == 400
    assert_close(report.kl, latent_kl(model, x).mean(0))
    assert_close(report.rate, latent_kl(model, x).sum(1).mean().item())
    assert_close(report.bound, model.log_prob(x, 400, seed=2).double().mean().item())
    assert_close(report.error, model.log_prob(x, 400, seed=2).double().std().item() / 200**.5)
    assert_close(report.distortion, -model.elbo(x, n_samples=2000, generator=generator(5)).log_lik.mean().item(), atol=.01, rtol=0)
    assert_close(report.elbo, -report.distortion - report.rate)
    assert_close(report.gap, report.bound - report.elbo)
    assert report.surgery == mutual_information(model, x, seed=2)
    assert report.active.tolist() == active_units(model, x).tolist()
    assert set(report.table.index) == {"distortion", "rate", "ELBO", "bound", "gap", "information", "marginal KL", "active units"}
    assert_close(report.table.value["rate"], report.rate)
    mu, logvar = posteriors(model, x)
    assert (report.spans.diff(dim=1) > 0).all()
    assert_close(report.spans[:, 1], mu.median(0).values, atol=.5, rtol=0)


def test_many_rows_in_pieces():
    model, x = vae(), data(2500, seed=3)
    report = diagnose(model, x, n_samples=2)
    assert_close(report.rate, latent_kl(model, x[:1250]).sum(1).mean().item() / 2
                 + latent_kl(model, x[1250:]).sum(1).mean().item() / 2)


@pytest.mark.parametrize("kind", ["images", "pair", "learned", "conditional", "double"])
def test_every_kind_of_model_has_a_report(kind):
    x, cond = data(40, 8), None
    if kind == "images":
        encoder = nn.Sequential(nn.Flatten(), MLPEncoder(8, 3, (8,)))
        decoder = nn.Sequential(MLPDecoder(3, 8, (8,)), nn.Unflatten(1, (1, 2, 4)))
        model, x = VAE(encoder, decoder, StandardNormal(3), GaussianLikelihood()), x.view(40, 1, 2, 4)
    elif kind == "pair":
        class Both(MLPDecoder):
            event_shape = property(lambda self: (8,), lambda self, value: None)
            def forward(self, z): return super().forward(z).chunk(2, -1)
        model = VAE(MLPEncoder(8, 3, (8,)), Both(3, 16, (8,)), likelihood=GaussianLikelihood())
    else:
        likelihood = GaussianLikelihood(learn=True) if kind == "learned" else None
        model = vae(3, 8, likelihood=likelihood, prior=Moving() if kind == "conditional" else None)
        if kind == "conditional": cond = torch.randn(40, 2, generator=generator(1))
        if kind == "double": model, x = model.double(), x.double()
    report = diagnose(model, x, cond, n_samples=3)
    assert math.isfinite(report.bound) and report.gap > -3 and "active units" in repr(report)
    assert (report.noise is not None) == (kind == "images")


def healthy():
    """A report that warns of nothing."""
    return diagnostics.Diagnosis(
        n_rows=1000, beta=1., distortion=10., kl=torch.tensor([1.5, 1.5]), spread=torch.tensor([.9, .9]), spans=torch.zeros(2, 3),
        surgery=Surgery(3., 2.9, .1, .01, 2.95), bound=-12.9, n_samples=100, error=.1)


@pytest.mark.parametrize("change, words", [
    ({}, None),
    ({"kl": torch.tensor([.1, .1]), "surgery": Surgery(.2, .2, 0., .01, .2), "bound": -10.2}, "2 of 2 units active, rate 0.20 nats: the decoder all but"),
    ({"spread": torch.tensor([.9, .009])}, "1 of 2 units active, rate 3.00 nats: the others do not pay"),
    ({"spread": torch.tensor([0., 0.]), "kl": torch.zeros(2), "surgery": Surgery(0., 0., 0., 0., 0.), "bound": -10.,
      "noise": 1., "loudest": .7}, "β·σ² = 1 is above the largest variance of the data, 0.7"),
    ({"spread": torch.tensor([.9, .001])}, "1 inactive units cost 1.50 nats"),
    ({"surgery": Surgery(3., 2., 1., .01, 3.1)}, "too few"),
    ({"surgery": Surgery(3., 2., 1., .01, 2.1)}, "at least 0.90 nats from the prior"),
    ({"bound": -11.5}, "1.50 nats above the ELBO"),
])
def test_each_warning_and_only_for_cause(change, words):
    found = replace(healthy(), **change).warnings
    assert (found == []) if words is None else any(words in text for text in found), found
    assert words is None or any(f"! {text}" in repr(replace(healthy(), **change)) for text in found)


def test_units_that_are_needed():
    assert healthy().needed == 2
    assert replace(healthy(), kl=torch.tensor([.01, 3., .02])).needed == 1
    assert replace(healthy(), kl=torch.tensor([1., 0., 1., 1.])).needed == 3
    assert healthy().hole == pytest.approx(.05) and replace(healthy(), surgery=Surgery(3., 2., 1., 0., 9.)).hole == 0


@pytest.mark.parametrize("latent", [1, 5])
def test_the_picture(latent):
    import matplotlib.pyplot as plt
    report = diagnose(vae(latent), data(), n_samples=2)
    fig, (left, right) = report.plot()
    heights = [p.get_height() for p in left.patches]
    assert heights == sorted(heights, reverse=True) and len(heights) == latent
    assert sum(heights) == pytest.approx(report.rate, rel=1e-4)
    plt.close(fig)


def test_linear_rates_by_either_product():
    x = torch.randn(30, 8, generator=generator(0), dtype=torch.float64) @ torch.randn(8, 8, generator=generator(1), dtype=torch.float64)
    wide, tall = x.T.contiguous(), x
    for part in (wide, tall):
        lam = torch.linalg.svdvals(part - part.mean(0)).square() / len(part)
        assert_close(linear_rates(part, .3), .5 * (lam / .3).clamp_min(1).log(), atol=1e-9, rtol=1e-9)
    assert_close(linear_rates(tall.view(30, 2, 2, 2), .3), linear_rates(tall, .3))


class Mixture(StandardNormal):
    def log_prob(self, z): return z.sum(-1)


class SelfSet(GaussianLikelihood):
    """A likelihood that finds its σ by itself."""


def test_a_likelihood_that_sets_its_own_noise_is_not_blamed():
    assert diagnose(vae(likelihood=SelfSet()), data(), n_samples=2).noise is None
    assert diagnose(vae(likelihood=GaussianLikelihood(.5), beta=3.), data(), n_samples=2).noise == pytest.approx(.75)


X = data()
@pytest.mark.parametrize("call, kind, words", [
    (lambda: posteriors(nn.Linear(6, 3), X), TypeError, "model: expected a VAE, got Linear"),
    (lambda: diagnose(None, X), TypeError, "got NoneType"),
    (lambda: posteriors(vae(prior=Mixture(3)), X), TypeError, "expected a normal prior, got Mixture"),
    (lambda: latent_kl(vae(), X[:, :5]), ValueError, "x: expected shape"),
    (lambda: latent_kl(vae(), X / 0), ValueError, "NaN or infinite"),
    (lambda: latent_kl(vae(), X.double()), TypeError, "float32"),
    (lambda: active_units(vae(), X[:1]), ValueError, "at least 2 rows, got 1"),
    (lambda: active_units(vae(), X, threshold=-.1), ValueError, "threshold: expected ≥ 0"),
    (lambda: active_units(vae(), X, threshold="a"), ValueError, "threshold"),
    (lambda: active_units(vae(), X, threshold=math.nan), ValueError, "threshold"),
    (lambda: mutual_information(vae(), X[:1]), ValueError, "at least 2 rows"),
    (lambda: mutual_information(vae(), X, n_samples=1), ValueError, "n_samples: expected ≥ 2, got 1"),
    (lambda: mutual_information(vae(), X, n_samples=2.), TypeError, "whole number"),
    (lambda: mutual_information(vae(), X, n_samples=True), TypeError, "whole number"),
    (lambda: mutual_information(vae(), X, seed=-1), ValueError, "seed"),
    (lambda: diagnose(vae(), X, n_samples=0), ValueError, "n_samples: expected ≥ 1"),
    (lambda: diagnose(vae(), X[:1]), ValueError, "at least 2 rows"),
    (lambda: diagnose(vae(prior=Moving()), X, X[:7, :2]), ValueError, "cond: expected 50 rows"),
    (lambda: aggregate_log_prob(X[:, :2], X, X), ValueError, "z: expected shape (any, 6)"),
    (lambda: aggregate_log_prob(X, X, X[:7]), ValueError, "logvar: expected shape (50, 6)"),
    (lambda: aggregate_log_prob(X, X[0], X[0]), ValueError, "mu: expected shape"),
    (lambda: aggregate_log_prob(X.long(), X, X), TypeError, "z: expected floating"),
    (lambda: linear_rates(X, 0.), ValueError, "noise: expected a finite number > 0"),
    (lambda: linear_rates(X, math.inf), ValueError, "noise"),
    (lambda: linear_rates(X, "1"), TypeError, "noise: expected a number"),
    (lambda: linear_rates(X, True), TypeError, "noise"),
    (lambda: linear_rates(X[:1], 1.), ValueError, "at least 2 rows"),
    (lambda: linear_rates(X.long(), 1.), TypeError, "x: expected floating"),
])
def test_bad_input_is_refused_with_the_reason(call, kind, words):
    with pytest.raises(kind) as caught: call()
    assert words in str(caught.value)
