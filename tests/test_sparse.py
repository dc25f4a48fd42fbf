"""What a user of the sparse autoencoders relies on, beyond what the chapter shows."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from vae_notes.autoencoder import Autoencoder
from vae_notes.core import generator
from vae_notes.files import load, save
from vae_notes.likelihoods import BernoulliLikelihood
from vae_notes.sparse import L1, ActivationKL, Dictionary, SparseAutoencoder, TopK, dead_units, revive, soft_threshold
from vae_notes.training import fit

few = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 999)


def rand(*shape, seed=0): return torch.rand(*shape, generator=generator(seed), dtype=torch.float64)
def randn(*shape, seed=0): return torch.randn(*shape, generator=generator(seed))


def model(activation=None, seed=0, latent=9, **given):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(6, latent), activation or nn.ReLU())
    return SparseAutoencoder(encoder, Dictionary(latent, 6), **given)


@few
@given(a=st.floats(-9, 9), lam=st.floats(0, 5), step=st.floats(-3, 3))
def test_nothing_beats_the_soft_threshold(a, lam, step):
    a = torch.tensor(a, dtype=torch.float64)
    def cost(z): return .5 * (z - a)**2 + lam * z.abs()
    z = soft_threshold(a, lam)
    assert cost(z) <= cost(z + step) + 1e-12
    assert cost(z) <= cost(z + 1e-3 * step) + 1e-12
    assert z.abs() <= a.abs() and (z == 0) == (a.abs() <= lam)


@pytest.mark.parametrize("lam", [-1., math.nan])
def test_no_negative_price(lam):
    with pytest.raises(ValueError, match="lam: expected ≥ 0"): soft_threshold(torch.zeros(2), lam)


@few
@given(seed=seeds, rho=st.floats(.01, .99), n=st.integers(1, 30))
def test_the_kl_penalty_by_torch_distributions(seed, rho, n):
    z = rand(n, 4, seed=seed)
    rho = torch.tensor(rho, dtype=torch.float64)
    coins = (torch.distributions.Bernoulli(probs=p) for p in (rho.expand(4), z.mean(0)))
    expected = torch.distributions.kl_divergence(*coins).sum()
    penalty = ActivationKL(rho.item())(z)
    assert_close(penalty, expected, rtol=1e-6, atol=1e-9)
    assert penalty >= 0
    order = torch.randperm(n, generator=generator(seed))
    assert_close(ActivationKL(rho.item())(z[order]), penalty)


@few
@given(seed=seeds, r=st.floats(.01, .99), rho=st.floats(.01, .99))
def test_the_kl_gradient(seed, r, rho):
    z = torch.full((7, 1), r, dtype=torch.float64, requires_grad=True)
    ActivationKL(rho)(z).backward()
    expected = (-rho / r + (1 - rho) / (1 - r)) / 7
    assert_close(z.grad, torch.full_like(z, expected), rtol=1e-6, atol=1e-9)


def test_the_kl_penalty_is_least_at_its_target():
    assert ActivationKL(.3)(torch.full((5, 2), .3, dtype=torch.float64)).abs() < 1e-12
    assert ActivationKL(.3)(torch.full((5, 2), .31)) > 0


@pytest.mark.parametrize("value", [0., 1.])
def test_units_stuck_at_an_end_cost_a_finite_amount(value):
    z = torch.full((5, 2), value, requires_grad=True)
    penalty = ActivationKL()(z)
    penalty.backward()
    assert penalty.isfinite() and z.grad.isfinite().all()


@pytest.mark.parametrize("z", [torch.full((2, 2), -.1), torch.full((2, 2), 1.1), torch.tensor([[.5, math.nan]]),
                               torch.tensor([[-.5], [1.]])])
def test_codes_that_are_no_activations_are_refused(z):
    with pytest.raises(ValueError, match="z: expected activations in"): ActivationKL()(z)


@few
@given(seed=seeds, k=st.integers(1, 8), latent=st.integers(8, 12))
def test_top_k_keeps_the_largest(seed, k, latent):
    a = randn(13, latent, seed=seed)
    z = TopK(k)(a)
    kept = z != 0
    assert (kept.sum(1) <= k).all()
    assert torch.equal(z[kept], a[kept]) and (z >= 0).all()
    assert torch.equal(z.sort(1, descending=True).values[:, :k], a.sort(1, descending=True).values[:, :k].clamp(min=0))
    assert torch.equal(TopK(k)(z), z)
    assert_close(TopK(k)(2 * a), 2 * z)


def test_top_k_with_ties_keeps_k():
    assert (TopK(2)(torch.ones(3, 5)) != 0).sum(1).tolist() == [2, 2, 2]
    assert TopK(2)(torch.ones(3, 4, 5)).shape == (3, 4, 5)


bad = {
    "k = 0": (lambda: TopK(0), ValueError, "k: expected ≥ 1"),
    "k = -1": (lambda: TopK(-1), ValueError, "k: expected ≥ 1"),
    "k = 1.5": (lambda: TopK(1.5), TypeError, "k: expected a whole number"),
    "k = True": (lambda: TopK(True), TypeError, "k: expected a whole number"),
    "k > latent": (lambda: TopK(4)(torch.zeros(2, 3)), ValueError, "k: expected ≤ 3"),
    "target 0": (lambda: ActivationKL(0.), ValueError, "target: expected 0 < target < 1"),
    "target 1": (lambda: ActivationKL(1), ValueError, "target: expected 0 < target < 1"),
    "target NaN": (lambda: ActivationKL(math.nan), ValueError, "target: expected"),
    "target text": (lambda: ActivationKL("a"), TypeError, "target: expected a number"),
    "target True": (lambda: ActivationKL(True), TypeError, "target: expected a number"),
    "weight < 0": (lambda: model(weight=-.1), ValueError, "weight: expected 0 ≤ weight"),
    "weight inf": (lambda: model(weight=math.inf), ValueError, "weight: expected 0 ≤ weight"),
    "weight NaN": (lambda: model(weight=math.nan), ValueError, "weight: expected 0 ≤ weight"),
    "weight None": (lambda: model(weight=None), TypeError, "weight: expected a number"),
    "weight True": (lambda: model(weight=True), TypeError, "weight: expected a number"),
    "penalty": (lambda: model(penalty="l1"), TypeError, "penalty: expected a torch.nn.Module, got str"),
    "encoder": (lambda: SparseAutoencoder(torch.relu, nn.Identity()), TypeError, "encoder: expected"),
    "no atoms": (lambda: Dictionary(0, 3), ValueError, "latent_dim: expected ≥ 1"),
    "no features": (lambda: Dictionary(3, 0), ValueError, "n_features: expected ≥ 1"),
    "half an atom": (lambda: Dictionary(1.5, 3), TypeError, "latent_dim: expected a whole"),
    "not revivable": (lambda: revive(Autoencoder(nn.Linear(3, 2), nn.Linear(2, 3)), torch.zeros(2, 3)), TypeError, "model: "),
}


@pytest.mark.parametrize("call, kind, message", bad.values(), ids=bad.keys())
def test_what_is_wrong_is_named(call, kind, message):
    with pytest.raises(kind) as info: call()
    assert message in str(info.value)


@few
@given(seed=seeds, weight=st.floats(0, 5))
def test_the_loss_is_its_parts(seed, weight):
    m, x = model(seed=seed, weight=weight), randn(11, 6, seed=seed)
    terms, z = m.terms(x), m.encoder(x)
    assert_close(terms["penalty"], z.abs().sum() / 11)
    assert_close(terms["active"], (z != 0).float().sum() / 11)
    assert_close(terms["mse"], (m.decoder(z) - x).square().mean())
    bare = Autoencoder(m.encoder, m.decoder)
    assert_close(terms["loss"], bare.loss(x) + weight * terms["penalty"])
    assert terms["loss"].requires_grad and not terms["penalty"].requires_grad and not terms["active"].requires_grad


def test_the_penalty_reaches_the_encoder():
    x = randn(11, 6)
    grads = []
    for weight in (0., 1.):
        m = model(weight=weight)
        m.loss(x).backward()
        grads.append(m.encoder[0].weight.grad)
    z = model().encoder(x)
    by_hand = ((z > 0).float().T @ x) / 11
    assert_close(grads[1] - grads[0], by_hand, rtol=1e-4, atol=1e-5)


@few
@given(seed=seeds, scale=st.floats(.1, 10))
def test_atoms_have_length_one_whatever_the_weights(seed, scale):
    torch.manual_seed(seed)
    words, z = Dictionary(7, 4), randn(5, 7, seed=seed)
    before = words(z)
    with torch.no_grad(): words.weight *= scale
    assert_close(words.atoms.norm(dim=1), torch.ones(7))
    assert_close(words(z), before, rtol=1e-4, atol=1e-5)
    assert_close(words(torch.zeros(2, 7)), words.bias.expand(2, 4))


@pytest.mark.parametrize("activation, penalty", [(nn.ReLU(), None), (nn.ReLU(), L1()), (nn.Sigmoid(), ActivationKL(.1)),
                                                 (TopK(3), None)])
def test_models_are_saved_and_loaded(tmp_path, activation, penalty):
    m = model(activation, penalty=penalty, weight=.3)
    save(m, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    x = randn(8, 6)
    assert type(again.penalty) is type(m.penalty) and again.weight == .3
    assert torch.equal(again.embed(x), m.embed(x)) and torch.equal(again.loss(x), m.loss(x))


def test_other_likelihoods_are_fine():
    m = model(likelihood=BernoulliLikelihood(), weight=0.)
    x = (randn(9, 6) > 0).float()
    logits = m.decoder(m.encoder(x))
    assert_close(m.loss(x), F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / 9)


def test_dead_units_are_those_no_row_wakes():
    m = model(TopK(3))
    with torch.no_grad(): m.encoder[0].bias[[2, 5]] = -1e3
    x = randn(500, 6)
    dead = dead_units(m, x)
    assert dead[[2, 5]].all() and torch.equal(dead, (m.embed(x) != 0).sum(0) == 0)


def test_revived_units_live_and_the_others_stay():
    m = model(TopK(3), seed=1)
    with torch.no_grad(): m.encoder[0].bias[[2, 5]] = -1e3
    x = randn(500, 6)
    dead, old = dead_units(m, x), m.decoder.atoms.detach().clone()
    residual = F.normalize(x - m.reconstruct(x), dim=1)
    assert revive(m, x, seed=3) == dead.sum()
    new = m.decoder.atoms.detach()
    assert torch.equal(new[~dead], old[~dead])
    assert_close((residual @ new[dead].T).max(0).values, torch.ones(int(dead.sum())))
    assert_close(m.encoder[0].weight[dead], new[dead])
    assert not dead_units(m, x)[dead].all()
    assert all(p.requires_grad for p in m.parameters())


def test_revive_does_nothing_where_all_live_and_repeats_itself():
    x = randn(500, 6)
    m = model()
    before = nn.utils.parameters_to_vector(m.parameters()).clone()
    if not dead_units(m, x).any():
        assert revive(m, x) == 0
        assert torch.equal(nn.utils.parameters_to_vector(m.parameters()), before)
    twins = [model(TopK(2)) for _ in range(2)]
    for twin in twins:
        with torch.no_grad(): twin.encoder[0].bias[:4] = -1e3
        revive(twin, x, seed=5)
    assert torch.equal(twins[0].decoder.weight, twins[1].decoder.weight)


def test_revive_needs_a_row_for_each_unit():
    m = model()
    with torch.no_grad(): m.encoder[0].bias[:] = -1e3
    with pytest.raises(ValueError, match="x: expected at least 9 rows"): revive(m, randn(3, 6))


def test_training_makes_sparser_codes_and_repeats_itself():
    x = randn(256, 6)
    def run(weight):
        m = model(weight=weight)
        history = fit(m, x, epochs=10, batch_size=32, lr=1e-2)
        return history["active"][-1], nn.utils.parameters_to_vector(m.parameters())
    (dense, _), (sparse, a), (_, b) = run(0.), run(1.), run(1.)
    assert sparse < dense and torch.equal(a, b)


def test_fit_refuses_codes_the_penalty_does_not_know():
    m = model(nn.Identity(), penalty=ActivationKL())
    with pytest.raises(ValueError, match="activations in"): fit(m, randn(20, 6), epochs=1)
