"""What a user of the VAE relies on, beyond what its chapter shows."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close

from vae_notes import VAE, BernoulliLikelihood, GaussianLikelihood, MLPDecoder, MLPEncoder, StandardNormal, fit, generator, load, save
from vae_notes.autoencoder import mlp
from vae_notes.convolutional import ConvDecoder, ConvEncoder
from vae_notes.likelihoods import CategoricalLikelihood, OptimalGaussianLikelihood, SteppedLikelihood
from vae_notes.vae import GaussianEncoder

FEATURES, LATENT = 12, 3


def data(n: int, seed: int = 0) -> torch.Tensor:
    """Binary rows with something to learn: four noisy patterns."""
    g = generator(seed)
    patterns = torch.rand(4, FEATURES, generator=generator(99)) > .5
    flips = torch.rand(n, FEATURES, generator=g) < .05
    return (patterns[torch.randint(4, (n,), generator=g)] ^ flips).float()


def model(seed: int = 0, likelihood: nn.Module | None = None) -> VAE:
    torch.manual_seed(seed)
    return VAE(MLPEncoder(FEATURES, LATENT, hidden=(16,)), MLPDecoder(LATENT, FEATURES, hidden=(16,)), likelihood=likelihood)


METHODS = {
    "embed": lambda m, x: m.embed(x),
    "reconstruct": lambda m, x: m.reconstruct(x),
    "log_prob": lambda m, x: m.log_prob(x, 7),
    "score": lambda m, x: m.score(x, 7),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@every_method
@settings(max_examples=20, deadline=None, derandomize=True)
@given(n=st.integers(1, 40), cut=st.integers(0, 40), seed=st.integers(0, 1000))
def test_a_row_is_treated_alike_in_any_company(method, n, cut, seed):
    m, x = model(), data(n, seed)
    whole = method(m, x)
    assert len(whole) == n
    assert torch.equal(whole, method(m, x)), "two calls differ"
    parts = [method(m, part) for part in (x[:cut], x[cut:]) if len(part)]
    assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
    order = torch.randperm(n, generator=generator(seed))
    assert_close(method(m, x[order]), whole[order], rtol=1e-5, atol=1e-5)


@every_method
def test_many_rows_are_the_same_as_few(method):
    m, x = model(), data(40_000)
    assert_close(method(m, x)[-5:], method(m, x[-5:]), rtol=1e-5, atol=1e-5)


@every_method
def test_methods_leave_no_trace(method):
    m, x = model(), data(5)
    m.train()
    m.decoder.eval()
    before = torch.get_rng_state()
    result = method(m, x)
    assert torch.equal(before, torch.get_rng_state())
    assert m.training and m.encoder.training and not m.decoder.training
    assert not result.requires_grad


bad_inputs = {
    "a list": ([[0.] * FEATURES], TypeError, "x: expected a torch.Tensor, got list"),
    "whole numbers": (torch.zeros(2, FEATURES, dtype=torch.int64), TypeError, r"x: .*int64"),
    "doubles": (torch.zeros(2, FEATURES, dtype=torch.float64), TypeError, r"x: .*float64"),
    "too few features": (torch.zeros(2, FEATURES - 1), ValueError, r"x: expected shape \(any, 12\), got \(2, 11\)"),
    "one row without its batch": (torch.zeros(FEATURES), ValueError, r"x: expected shape"),
    "no rows": (torch.zeros(0, FEATURES), ValueError, "x: .*empty"),
    "a NaN": (torch.full((2, FEATURES), torch.nan), ValueError, "x: .*24 NaN"),
}


@every_method
@pytest.mark.parametrize("x, error, message", bad_inputs.values(), ids=bad_inputs.keys())
def test_bad_input_is_named(method, x, error, message):
    with pytest.raises(error, match=message): method(model(), x)


@pytest.mark.parametrize("x, error, message", [v for k, v in bad_inputs.items() if k != "doubles"],
                         ids=[k for k in bad_inputs if k != "doubles"])  # which `fit` converts
def test_bad_data_never_reaches_training(x, error, message):
    m = model()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    with pytest.raises(error): fit(m, x, epochs=1)
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(TypeError, match=r"pass prior=StandardNormal\(latent_dim\)"):
        VAE(nn.Linear(4, 4), nn.Linear(2, 4))
    with pytest.raises(ValueError, match="beta"): VAE(MLPEncoder(4, 2), MLPDecoder(2, 4), beta=-1.)
    with pytest.raises(ValueError, match="decoder: .*latent_dim"): VAE(MLPEncoder(4, 2), MLPDecoder(3, 4))
    with pytest.raises((TypeError, ValueError), match="latent_dim"): StandardNormal(0)


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_counts_must_be_whole_and_positive(n):
    for call in (lambda: model().sample(n), lambda: model().log_prob(data(2), n), lambda: model().elbo(data(2), n_samples=n)):
        with pytest.raises((TypeError, ValueError), match="n"): call()


@pytest.mark.parametrize("likelihood", [BernoulliLikelihood(), GaussianLikelihood(.5), GaussianLikelihood(1., learn=True)],
                         ids=["Bernoulli", "fixed", "learned"])
def test_every_parameter_gets_a_gradient_and_one_batch_can_be_learned(likelihood):
    m, x = model(likelihood=likelihood), data(16)
    m.loss(x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    history = fit(m, x, epochs=150, batch_size=16, lr=1e-2)
    assert history["loss"][-1] < history["loss"][0] - 2


def test_beta_weighs_training_but_not_the_bound():
    x, g = data(8), generator(3)
    plain, heavy = model(), model()
    heavy.beta = 10.
    a, b = (m.elbo(x, generator=generator(3)) for m in (plain, heavy))
    assert torch.equal(a.value, b.value)
    difference = heavy.loss(x, generator=generator(3)) - plain.loss(x, generator=generator(3))
    assert_close(difference, 9 * a.kl.mean(), rtol=1e-4, atol=1e-5)


def test_the_bound_rises_with_the_number_of_samples():
    m, x = model(), data(200)
    with torch.no_grad():
        for weight in m.decoder.parameters(): weight *= 4  # far from what the encoder expects
    bounds = [m.log_prob(x, k).mean().item() for k in (1, 10, 100, 1000)]
    assert bounds == sorted(bounds)


FRESH = """
import hashlib, sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads({threads})
from test_vae import data, fit, generator, model
m = model()
history = fit(m, data(300), epochs=3)
state = [*m.state_dict().values(), torch.from_numpy(history["loss"]), m.sample(5, generator=generator(1)), m.score(data(50))]
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in state)).hexdigest(), float(history["loss"][-1]))
"""


def fresh_process(threads: int) -> list[str]:
    from pathlib import Path
    code = FRESH.format(tests=str(Path(__file__).parent), threads=threads)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_two_processes_agree_to_the_bit_and_threads_to_rounding():
    first, second, two_threads = fresh_process(1), fresh_process(1), fresh_process(2)
    assert first == second
    assert abs(float(first[1]) / float(two_threads[1]) - 1) < 1e-5


def test_any_network_of_twice_the_latents_is_an_encoder():
    net = nn.Sequential(nn.Linear(FEATURES, 2 * LATENT))
    m, x = VAE(GaussianEncoder(net, LATENT), MLPDecoder(LATENT, FEATURES)), data(5)
    q = m.encode(x)
    assert_close(torch.cat([q.mean, 2 * q.stddev.log()], -1), net(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="latent_dim"): GaussianEncoder(net)
    with pytest.raises((TypeError, ValueError), match="latent_dim"): GaussianEncoder(net, 0)


def test_a_convolutional_vae_comes_back_from_a_file(tmp_path):
    shape = (1, 8, 8)
    m = VAE(GaussianEncoder(ConvEncoder(shape, 4, (4,))), ConvDecoder(2, shape, (4,)))
    x = (torch.rand(6, 64, generator=generator(0)) < .3).float()
    fit(m, x, epochs=1)
    save(m, tmp_path / "m.safetensors")
    assert torch.equal(load(tmp_path / "m.safetensors").log_prob(x, 5), m.log_prob(x, 5))
    with pytest.raises(ValueError, match="outputs"): GaussianEncoder(ConvEncoder(shape, 5, (4,)))


def test_the_likelihood_is_asked_about_the_data():
    m = VAE(MLPEncoder(FEATURES, LATENT), MLPDecoder(LATENT, FEATURES), likelihood=SteppedLikelihood([0., .5, 1.]))
    m.check(data(3))
    with pytest.raises(ValueError, match="got 0.3"): fit(m, torch.full((4, FEATURES), .3), epochs=1)


@pytest.mark.parametrize("likelihood", [OptimalGaussianLikelihood(), SteppedLikelihood([0., 1.]), CategoricalLikelihood([0., 1.])],
                         ids=["optimal", "steps", "categories"])
def test_newer_likelihoods_keep_the_promises(likelihood):
    width = FEATURES * (2 if type(likelihood) is CategoricalLikelihood else 1)
    torch.manual_seed(0)
    m, x = VAE(MLPEncoder(FEATURES, LATENT), mlp([LATENT, 16, width]), likelihood=likelihood), data(20)
    history = fit(m, x, epochs=30, batch_size=10, lr=1e-2)
    assert history["loss"][-1] < history["loss"][0]
    before = {k: v.clone() for k, v in m.state_dict().items()}
    whole = m.score(x)
    assert_close(torch.cat([m.score(row[None]) for row in x]), whole, rtol=1e-4, atol=1e-4)
    assert m.reconstruct(x).shape == x.shape and m.sample(3).shape == (3, FEATURES)
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
