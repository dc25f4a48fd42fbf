"""Defects met in other libraries of autoencoders, each ruled out here."""

import random

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

from vae_notes.core import generator
from vae_notes.files import load, save
from vae_notes.likelihoods import GaussianLikelihood
from vae_notes.training import fit
from vae_notes.vae import VAE, MLPDecoder, MLPEncoder, StandardNormal


def small_vae(**kwargs) -> VAE:
    torch.manual_seed(0)
    return VAE(MLPEncoder(6, 2, (8,)), MLPDecoder(2, 6, (8,)), likelihood=GaussianLikelihood(), **kwargs)


def rows(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 6, generator=generator(seed))


def test_the_kl_is_on_by_default():
    """Not off under the name of a regular VAE, by a capacity of 0."""
    model = small_vae()
    terms = model.terms(rows(50))
    assert terms["rate"] > 0
    torch.testing.assert_close(terms["loss"], terms["distortion"] + terms["rate"])
    head = model.encoder.layers[-1].bias
    gradient, = torch.autograd.grad(model.elbo(rows(50)).kl.mean(), head)
    mean = model.encode(rows(50)).base_dist.loc.mean(0)
    torch.testing.assert_close(gradient[:2], mean)  # dKL/dμ = μ


@pytest.mark.parametrize("method", ["score", "embed", "reconstruct", "log_prob"])
def test_two_calls_agree_in_any_mode(method):
    """No score from a sampled reconstruction: labels would flip."""
    model, x = small_vae(), rows(20)
    torch.manual_seed(1)
    first = getattr(model.train(), method)(x)
    torch.manual_seed(2)
    assert torch.equal(first, getattr(model.eval(), method)(x))


def test_global_generators_are_left_alone():
    """Neither by making a model's prior, nor by fitting, scoring or drawing
    with a generator."""
    model, x = small_vae(), rows(64)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    def states(): return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    before = states()
    fit(model, x, epochs=1, progress=False, seed=3)
    model.score(x), model.sample(3, generator=generator(0)), StandardNormal(2)
    assert states() == before


@pytest.mark.parametrize("n_samples", [1, 7, 300])
def test_the_bound_draws_as_many_codes_as_asked(n_samples):
    """Not another number, not with gradients on, not a row at a time."""
    model, x, seen = small_vae(), rows(5), []
    model.decoder.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].numel() // 2, output.requires_grad)))
    model.log_prob(x, n_samples=n_samples)
    assert sum(n for n, _ in seen) == 5 * n_samples
    assert not any(grad for _, grad in seen)
    assert len(seen) < 5


def test_the_output_is_not_squashed_by_default():
    """A sigmoid cannot reach standardised tables."""
    made = small_vae().decode(100 * torch.randn(500, 2, generator=generator(0))).mean
    assert made.min() < 0 and made.max() > 1


def test_validation_weighs_the_kl_as_training_does():
    """Not .00025 in one and 1 in the other; and it is never negative."""
    x = rows(64)
    history = fit(small_vae(beta=.00025), x, valid=x, epochs=2, progress=False)
    frame = history.frame
    for part in ("", "valid_"):
        expected = frame[f"{part}distortion"] + .00025 * frame[f"{part}rate"]
        np.testing.assert_allclose(frame[f"{part}loss"], expected, rtol=1e-5)
        assert (frame[f"{part}rate"] > 0).all()


@pytest.mark.parametrize("n", [1, 10, 101])
def test_no_row_is_dropped_and_none_needed(n):
    """Not the last partial batch; and one row is enough, though the model
    was trained with batches of 50."""
    model = small_vae()
    fit(model, rows(100), batch_size=50, epochs=1, progress=False)
    x = rows(n, seed=1)
    for method in (model.embed, model.reconstruct, model.score): assert len(method(x)) == n
    history = fit(model, x, batch_size=50, epochs=1, progress=False)
    assert np.isfinite(history["loss"]).all()


def test_the_whole_model_is_kept(tmp_path):
    """The encoder too: what is loaded scores and rebuilds as before."""
    model, x = small_vae(), rows(9)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    for method in ("embed", "reconstruct", "score"):
        assert torch.equal(getattr(model, method)(x), getattr(again, method)(x))


def test_what_is_used_is_what_was_trained():
    """encode and decode are the parts that the loss joins: the bound put
    together from them is the loss."""
    model, x = small_vae(), rows(30)
    q = model.encode(x)
    eps = torch.randn(30, 2, generator=generator(4))
    z = q.base_dist.loc + q.base_dist.scale * eps
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    bound = model.decode(z).log_prob(x) - kl_divergence(q, prior)
    torch.testing.assert_close(model.loss(x, generator=generator(4)), -bound.mean())
