"""What the importance-weighted autoencoder, its prior and its data promise."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close

from vae_notes import VAE, MLPDecoder, MLPEncoder, fit, generator, load, save
from vae_notes.iwae import IWAE, MixturePrior, ResidualMLP, Warped

settings.register_profile("book", max_examples=15, deadline=None, derandomize=True)
settings.load_profile("book")
seeds = st.integers(0, 2**32)


def rows(n, d=9, seed=0): return (torch.rand(n, d, generator=generator(seed)) < .4).float()


def model(kind=IWAE, prior=None, **how):
    torch.manual_seed(0)
    return kind(MLPEncoder(9, 2, (8,)), MLPDecoder(2, 9, (8,)), prior, **how)


def gradient(m, x, part, seed=0):
    loss = m.terms(x, generator=generator(seed))["loss"]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*getattr(m, part).parameters()])])


@pytest.mark.parametrize("K", [1, 3, 20])
def test_the_loss_is_the_bound(K):
    """By hand from encode, decode and the same noise."""
    m, x = model(n_samples=K), rows(5)
    q, eps = m.encode(x), torch.randn(K, 5, 2, generator=generator(0))
    z = q.mean + q.stddev * eps
    log_w = m.decode(z).log_prob(x) - q.log_prob(z) + torch.distributions.Normal(0., 1.).log_prob(z).sum(-1)
    terms = m.terms(x, generator=generator(0))
    assert_close(terms["loss"], -(log_w.logsumexp(0) - math.log(K)).mean(), rtol=1e-4, atol=1e-5)
    assert_close(terms["minus_elbo"], -log_w.mean(), rtol=1e-4, atol=1e-5)
    assert terms["loss"] <= terms["minus_elbo"] + 1e-5 and 1 - 1e-5 <= terms["ess"] <= K + 1e-4


def test_dreg_changes_the_encoders_gradient_only():
    x = rows(8)
    plain, dreg = model(n_samples=5, dreg=False), model(n_samples=5)
    assert_close(gradient(plain, x, "decoder"), gradient(dreg, x, "decoder"), rtol=1e-4, atol=1e-6)
    assert (gradient(plain, x, "encoder") - gradient(dreg, x, "encoder")).abs().max() > 1e-3


def test_both_estimates_have_one_mean():
    """Averaged over many noises; the tolerance is that of their spread."""
    x = rows(4)
    draws = {d: torch.stack([gradient(model(n_samples=4, dreg=d), x, "encoder", s) for s in range(200)]) for d in (False, True)}
    difference = draws[False] - draws[True]
    z = difference.mean(0) / (difference.std(0) / 200**.5 + 1e-9)
    assert z.abs().max() < 4.5
    assert draws[True].var(0).sum() < draws[False].var(0).sum()


def test_weights_of_the_kl_act_as_in_the_vae():
    """At kl_weight 0 and K = 1 only the distortion is left."""
    m, x = model(n_samples=1), rows(5)
    v = model(VAE)
    v.load_state_dict(m.state_dict())
    loss = m.terms(x, kl_weight=0., generator=generator(1))["loss"]
    assert_close(loss, v.terms(x, generator=generator(1))["distortion"])
    m.beta = 2.
    assert_close(m.terms(x, kl_weight=.5, generator=generator(1))["loss"],
                 model(n_samples=1).terms(x, generator=generator(1))["loss"])


def test_it_learns_and_comes_back_from_a_file(tmp_path):
    m, x = model(prior=MixturePrior(2, 5), n_samples=3), rows(60)
    history = fit(m, x, epochs=20, batch_size=20, lr=1e-2, kl_warmup=2)
    assert history["loss"][-1] < history["loss"][0] - .2
    save(m, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert type(again) is IWAE and again.n_samples == 3 and again.dreg
    assert torch.equal(again.score(x), m.score(x))
    assert torch.equal(again.sample(4, generator=generator(0)), m.sample(4, generator=generator(0)))


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_counts_are_checked(n):
    with pytest.raises((TypeError, ValueError), match="n_samples"): model(n_samples=n)
    with pytest.raises((TypeError, ValueError), match="parts"): MixturePrior(2, n)
    with pytest.raises((TypeError, ValueError), match="latent_dim"): MixturePrior(n)
    with pytest.raises((TypeError, ValueError), match="batch_size"): Warped(rows(3), n)


@given(seeds, st.integers(1, 4), st.integers(1, 6))
def test_the_mixture_is_torchs(seed, latent, parts):
    torch.manual_seed(seed % 2**31)
    prior = MixturePrior(latent, parts, spread=2.).double()
    with torch.no_grad():
        for p in (prior.logit, prior.logvar): p += torch.randn(p.shape).double()
    z = 2 * torch.randn(3, 5, latent).double()
    assert_close(prior.log_prob(z), prior.distribution().log_prob(z), rtol=1e-6, atol=1e-6)


def test_a_learned_prior_keeps_the_promises():
    m, x = model(VAE, MixturePrior(2, 4)), rows(30)
    whole = m.score(x)
    assert torch.equal(whole, m.score(x))
    assert_close(torch.cat([m.score(r[None]) for r in x]), whole, rtol=1e-5, atol=1e-5)
    elbo = m.elbo(x, n_samples=7)
    assert elbo.kl.shape == elbo.log_lik.shape == (30,)
    m.loss(x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    with pytest.raises(ValueError, match="free_bits"): fit(m, x, epochs=1, free_bits=.1)


# --- bent images ---

@pytest.mark.parametrize("n, size", [(1, 1), (7, 3), (50, 4)])
def test_an_epoch_shows_every_image_once(n, size):
    images = torch.eye(n)[:, :, None].expand(n, n, n).flatten(1)[:, :n * n].contiguous()
    off = dict(turn=0., shear=0., stretch=0., shift=0., bend=0.)
    data = Warped(images, size, **off)
    batches = [*data]
    assert len(batches) == len(data) and all(len(b) <= size for b in batches)
    assert torch.equal(torch.cat(batches).sum(0), images.sum(0))


def test_epochs_differ_and_a_seed_repeats_them():
    data = Warped(torch.rand(6, 100, generator=generator(0)), 2)
    torch.manual_seed(0); first = torch.cat([*data]); second = torch.cat([*data])
    torch.manual_seed(0); again = torch.cat([*data])
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert set(first.unique().tolist()) <= {0., 1.}


def test_a_turn_moves_no_ink_on_a_disc_and_bends_stay_small():
    side = torch.linspace(-1, 1, 28)
    disc = ((side[:, None]**2 + side**2) < .5).float().view(1, -1).repeat(20, 1)
    still = dict(shear=0., stretch=0., shift=0.)
    torch.manual_seed(0)
    turned = Warped(disc, turn=.5, bend=0., **still).warp(disc)
    assert (turned - disc).abs().mean() < .03
    bent = Warped(disc, turn=0., bend=.5, **still).warp(disc)
    assert 0 < (bent - disc).abs().mean() < .08


def blob(side, at, width=2.):
    i = torch.arange(side).float()
    return torch.exp(-((i[:, None] - at[1])**2 + (i - at[0])**2) / (2 * width**2)).view(1, -1)


def centres(x, side):
    """(n, 2) centre of mass, sideways and down, pixels."""
    x, i = x.view(-1, side, side), torch.arange(side).float()
    return torch.stack([(x.sum(1) * i).sum(1), (x.sum(2) * i).sum(1)], 1) / x.sum((1, 2))[:, None]


@pytest.mark.parametrize("how, at, expected", [
    (dict(shift=.5), (13.5, 13.5), (.5, .5)),             # a shift moves by pixels
    (dict(turn=.1), (19.5, 13.5), (0., .6)),              # six pixels right of the middle: down by 6 · angle
    (dict(stretch=.1), (19.5, 13.5), (.6, 0.)),           # and outwards by 6 · log factor
    (dict(shear=.1), (13.5, 19.5), (.6, 0.)),             # six below: sideways
])
def test_strengths_are_in_their_units(how, at, expected):
    off = dict(turn=0., shear=0., stretch=0., shift=0., bend=0.)
    torch.manual_seed(0)
    x = blob(28, at).expand(4000, -1)
    moved = centres(Warped(x, cut=None, **{**off, **how}).warp(x), 28)
    assert_close(moved.std(0), torch.tensor(expected), atol=.06, rtol=.06)


def test_grey_stays_grey_where_it_is_not_cut():
    out = Warped(torch.rand(3, 64), cut=None).warp(torch.rand(3, 64))
    assert ((out > 0) & (out < 1)).any() and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("bad", [[[0.]], torch.zeros(2, 2, 2), torch.full((2, 4), math.nan)])
def test_bad_images_are_named(bad):
    with pytest.raises((TypeError, ValueError), match="images"): Warped(bad)


def test_bent_runs_repeat_to_the_bit():
    def run():
        m = model()
        fit(m, Warped(rows(20), 5), epochs=2)
        return nn.utils.parameters_to_vector(m.parameters())
    assert torch.equal(run(), run())


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_residual_networks_come_back_and_learn(blocks, tmp_path):
    net = ResidualMLP(4, 3, 8, blocks)
    x = torch.randn(5, 4)
    net(x).square().sum().backward()
    save(net, tmp_path / "net.safetensors")
    assert torch.equal(load(tmp_path / "net.safetensors")(x), net(x))
