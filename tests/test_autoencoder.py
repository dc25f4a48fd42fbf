"""What later chapters rely on: rows, order, modes, files, typed errors."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close

from vae_notes.autoencoder import Autoencoder, DayAutoencoder, Shortcut, from_pca, mlp
from vae_notes.core import generator
from vae_notes.files import load, save
from vae_notes.likelihoods import BernoulliLikelihood, GaussianLikelihood
from vae_notes.training import fit

few = settings(max_examples=20, deadline=None, derandomize=True)
FEATURES, LATENT = 6, 2


class Pair(nn.Module):
    """A decoder of means and log-variances."""
    def __init__(self, features: int = FEATURES):
        super().__init__()
        self.features = features
        self.layers = mlp([LATENT, 8, 2 * features])
    def forward(self, z): return self.layers(z).chunk(2, -1)


def model(seed=0, likelihood=None, dropout=.5):
    torch.manual_seed(seed)
    return Autoencoder(mlp([FEATURES, 8, LATENT], dropout=dropout), mlp([LATENT, 8, FEATURES]), likelihood)


def images():
    torch.manual_seed(0)
    return Autoencoder(nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48, LATENT)),
                       nn.Sequential(nn.Linear(LATENT, 48), nn.Unflatten(1, (3, 4, 4)), nn.ConvTranspose2d(3, 1, 2, 2)))


def data(n=20, seed=0): return torch.rand(n, FEATURES, generator=generator(seed))


MODELS = {"means": lambda: model(), "binary": lambda: model(likelihood=BernoulliLikelihood()),
          "learned": lambda: model(likelihood=GaussianLikelihood(.3, learn=True)),
          "pair": lambda: Autoencoder(mlp([FEATURES, LATENT], dropout=.3), Pair()),
          "each": lambda: model(likelihood=GaussianLikelihood(torch.linspace(.1, 1, FEATURES)))}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
METHODS = ("embed", "reconstruct", "score")
every_method = pytest.mark.parametrize("method", METHODS)


@every_model
def test_the_loss_is_minus_the_log_likelihood_by_torchs_own_distributions(make):
    m, x = make().eval(), data()
    given_z = m.decode(m.encode(x))
    assert_close(m.loss(x), -given_z.log_prob(x).mean())
    assert_close(m.terms(x)["mse"], (given_z.mean - x).square().mean())
    assert_close(m.score(x), -given_z.log_prob(x))
    assert_close(m.reconstruct(x), given_z.mean)
    assert_close(m.embed(x), m.encode(x))
    assert torch.equal(m(x), m.loss(x)) and set(m.terms(x)) == {"loss", "mse"}
    assert m.terms(x)["loss"].requires_grad and not m.terms(x)["mse"].requires_grad


def test_with_one_sigma_it_is_half_the_squared_error():
    m, x = model().eval(), data()
    expected = .5 * (m.reconstruct(x) - x).square().sum(1) + FEATURES / 2 * math.log(2 * math.pi)
    assert_close(m.score(x), expected)


@few
@given(n=st.integers(1, 40), cut=st.integers(0, 40), seed=st.integers(0, 1000), which=st.sampled_from(METHODS))
def test_a_row_is_treated_alike_in_any_company(n, cut, seed, which):
    m, x = model(), data(n, seed)
    method = getattr(m, which)
    whole = method(x)
    assert len(whole) == n and torch.equal(whole, method(x))
    assert_close(torch.cat([method(part) for part in (x[:cut], x[cut:]) if len(part)]), whole, rtol=1e-5, atol=1e-6)
    order = torch.randperm(n, generator=generator(seed))
    assert_close(method(x[order]), whole[order], rtol=1e-5, atol=1e-6)


@every_method
def test_many_rows_are_the_same_as_few(method):
    m, x = model(), data(40_000)
    assert_close(getattr(m, method)(x)[-5:], getattr(m, method)(x[-5:]), rtol=1e-5, atol=1e-6)


@every_method
def test_methods_leave_no_trace(method):
    m, x = model(), data(5)
    m.train(), m.decoder.eval()
    before = torch.get_rng_state()
    result = getattr(m, method)(x)
    assert torch.equal(before, torch.get_rng_state()) and not result.requires_grad
    assert m.training and m.encoder.training and not m.decoder.training


def test_dropout_acts_in_training_only():
    m, x = model(dropout=.5), data()
    assert not torch.equal(m.train().encode(x), m.encode(x))
    assert torch.equal(m.eval().encode(x), m.encode(x)) and torch.equal(m.embed(x), m.encode(x))


def test_images_and_codes_of_any_shape():
    m, x = images(), torch.rand(7, 1, 8, 8)
    assert m.embed(x).shape == (7, LATENT) and m.reconstruct(x).shape == x.shape and m.score(x).shape == (7,)
    z = torch.randn(3, 5, LATENT)
    many = m.decode(z)
    assert many.batch_shape == (3, 5) and many.event_shape == (1, 8, 8)
    assert_close(many.mean[1, 2], m.decode(z[1, 2][None]).mean[0], rtol=1e-5, atol=1e-6)
    assert m.terms(x)["loss"].isfinite()


def test_a_pair_of_parameters_is_folded_like_one():
    m, z = Autoencoder(mlp([FEATURES, LATENT]), Pair()), torch.randn(3, 5, LATENT)
    assert_close(m.decode(z).base_dist.scale[2, 4], m.decode(z[2, 4][None]).base_dist.scale[0])


bad_inputs = {
    "a list": ([[0.] * FEATURES], TypeError, "x: expected a torch.Tensor, got list"),
    "whole numbers": (torch.zeros(2, FEATURES, dtype=torch.int64), TypeError, "x: .*int64"),
    "doubles": (torch.zeros(2, FEATURES, dtype=torch.float64), TypeError, "x: .*float64"),
    "too few features": (torch.zeros(2, FEATURES - 1), ValueError, r"x: a row of shape \(5,\) does not pass"),
    "one row without its batch": (torch.zeros(FEATURES), ValueError, "x: expected shape"),
    "no rows": (torch.zeros(0, FEATURES), ValueError, "x: .*empty"),
    "a NaN": (torch.full((2, FEATURES), torch.nan), ValueError, "x: .*12 NaN")}


@pytest.mark.parametrize("x, error, message", bad_inputs.values(), ids=bad_inputs.keys())
def test_bad_input_is_named(x, error, message):
    for method in (*METHODS, "check", "encode"):
        with pytest.raises(error, match=message): getattr(model(), method)(x)
    if "doubles" in message or "float64" in message: return  # which `fit` converts
    with pytest.raises(error): fit(model(), x, epochs=1)


@pytest.mark.parametrize("z", [torch.zeros(LATENT), torch.zeros(0, LATENT), torch.full((2, LATENT), torch.inf), torch.zeros(2, LATENT, dtype=torch.long), [[0., 0.]]])
def test_bad_codes_are_named(z):
    with pytest.raises((TypeError, ValueError), match="z: "): model().decode(z)


def test_what_does_not_come_back_in_its_shape_is_refused():
    for wrong in (mlp([LATENT, FEATURES + 1]), nn.Sequential(mlp([LATENT, FEATURES]), nn.Unflatten(1, (2, 3)))):
        with pytest.raises(ValueError, match="x: a row of shape"): Autoencoder(mlp([FEATURES, LATENT]), wrong).check(data())
    with pytest.raises(ValueError, match=r"x: .*\[0, 1\]"): MODELS["binary"]().check(2 * data() + .1)
    quick = model(likelihood=BernoulliLikelihood(validate=False))
    with pytest.raises(ValueError, match=r"x: .*\[0, 1\]"): quick.check(data() - .5)
    assert quick.check(x := data()) is x


@pytest.mark.parametrize("part", ["encoder", "decoder", "likelihood"])
def test_parts_must_be_modules(part):
    parts = dict(encoder=mlp([3, 2]), decoder=mlp([2, 3]), likelihood=GaussianLikelihood()) | {part: torch.sigmoid}
    with pytest.raises(TypeError, match=f"{part}: expected a torch.nn.Module"): Autoencoder(**parts)


@every_model
def test_every_parameter_gets_a_gradient_and_one_batch_can_be_learned(make):
    m, x = make(), data(16)
    m.eval().loss(x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    history = fit(m, x, epochs=60, batch_size=16, lr=1e-2)
    assert history["loss"][-1] < history["loss"][0]


@every_model
def test_saved_and_loaded(make, tmp_path):
    m, x, path = make(), data(), tmp_path / "model.safetensors"
    save(m, path)
    again = load(path, classes=[Pair])
    assert type(again) is Autoencoder and not again.training
    for method in METHODS: assert torch.equal(getattr(again, method)(x), getattr(m, method)(x))


def test_gradients_are_those_of_finite_differences():
    m, x = model(dropout=0.).double(), data(4).double().requires_grad_()
    m.encoder[1] = nn.Tanh()
    m.decoder[1] = nn.Tanh()
    assert torch.autograd.gradcheck(m.loss, x)


def test_mlp_layers():
    layers = mlp([4, 5, 3, 2], nn.Tanh, dropout=.2)
    assert [type(m).__name__ for m in layers] == ["Linear", "Tanh", "Dropout"] * 2 + ["Linear"]
    assert [type(m).__name__ for m in mlp((4, 5, 2))] == ["Linear", "ReLU", "Linear"]
    assert [m.p for m in layers if isinstance(m, nn.Dropout)] == [.2, .2]
    assert layers(torch.randn(3, 4)).shape == (3, 2) and len(mlp([4, 2])) == len(mlp([4, 2], dropout=.5)) == 1


@pytest.mark.parametrize("sizes, keywords, error", [([4], {}, ValueError), ([], {}, ValueError), (4, {}, ValueError), ([4, 0], {}, ValueError), ([4, 2.5], {}, TypeError),
                                                    ([4, True], {}, TypeError), ([4, 2], dict(dropout=1.), ValueError), ([4, 2], dict(dropout=-.1), ValueError),
                                                    ([4, 2], dict(dropout=float("nan")), ValueError), ([4, 2], dict(dropout="a"), TypeError), ([4, 2], dict(dropout=True), TypeError)])
def test_bad_mlps_are_refused(sizes, keywords, error):
    with pytest.raises(error, match="sizes: |dropout: "): mlp(sizes, **keywords)


def test_the_network_of_the_notes():
    m = DayAutoencoder()
    assert sum(p.numel() for p in m.parameters()) == 4066
    names = [type(layer).__name__ for layer in m.encoder] + [type(layer).__name__ for layer in m.decoder]
    assert names == ["Linear", "Dropout", "ReLU"] * 2 + ["Linear", "ReLU", "Linear", "Sigmoid"]
    assert [layer.p for layer in m.encoder if isinstance(layer, nn.Dropout)] == [.5, .5]
    x = torch.rand(9, 72)
    assert ((m.reconstruct(x) > 0) & (m.reconstruct(x) < 1)).all() and (m.embed(x) >= 0).all()


@pytest.mark.parametrize("keywords", [{}, dict(per_day=24, hidden=7, latent_dim=3, dropout=.1, sigmoid=False)])
def test_days_are_saved_and_loaded(keywords, tmp_path):
    torch.manual_seed(0)
    m, path = DayAutoencoder(**keywords), tmp_path / "day.safetensors"
    save(m, path)
    again, x = load(path), torch.rand(4, m.per_day)
    assert type(again) is DayAutoencoder and torch.equal(again.score(x), m.score(x))
    assert all(getattr(again, name) == value for name, value in keywords.items())
    assert isinstance(again.decoder[-1], nn.Sigmoid if m.sigmoid else nn.Identity)


@pytest.mark.parametrize("keywords, error", [(dict(per_day=0), ValueError), (dict(hidden=2.), TypeError), (dict(latent_dim=True), TypeError), (dict(dropout=1.), ValueError)])
def test_bad_days_are_refused(keywords, error):
    with pytest.raises(error, match="sizes: |dropout: "): DayAutoencoder(**keywords)


def test_training_repeats_to_the_bit():
    runs = []
    for _ in range(2):
        m = model(dropout=.5)
        history = fit(m, data(100), epochs=3, seed=5, batch_size=32)
        runs.append([*m.state_dict().values(), torch.from_numpy(history["loss"])])
    assert all(map(torch.equal, *runs))


@few
@given(seed=st.integers(0, 10**6), k=st.integers(1, 5))
def test_no_linear_autoencoder_beats_the_discarded_eigenvalues(seed, k):
    g = generator(seed)
    x = torch.randn(50, FEATURES, generator=g, dtype=torch.float64) @ torch.randn(FEATURES, FEATURES, generator=g, dtype=torch.float64)
    x = x - x.mean(0)
    torch.manual_seed(seed)
    m = Autoencoder(nn.Linear(FEATURES, k, bias=False), nn.Linear(k, FEATURES, bias=False)).double()
    lam, V = torch.linalg.eigh(x.T @ x / 50)
    floor = .5 * lam[:-k].sum() + FEATURES / 2 * math.log(2 * math.pi)
    assert m.loss(x) >= floor
    with torch.no_grad(): m.encoder.weight.copy_(V[:, -k:].T), m.decoder.weight.copy_(V[:, -k:])
    assert_close(m.loss(x), floor)


@few
@given(n=st.integers(3, 40), columns=st.integers(2, 8), k=st.integers(1, 8), seed=st.integers(0, 10**6), offset=st.floats(-50, 50))
def test_it_starts_as_pca(n, columns, k, seed, offset):
    k = min(k, n, columns)
    x = torch.randn(n, columns, generator=generator(seed), dtype=torch.float64) + offset
    m = from_pca(x, k, hidden=(5, 4))
    mean, cov = x.mean(0), torch.cov(x.T, correction=0)
    V = torch.linalg.eigh(cov).eigenvectors[:, -k:]
    assert_close(m.reconstruct(x), mean + (x - mean) @ V @ V.T, rtol=1e-9, atol=1e-9)
    assert_close(m.embed(x).mean(0), torch.zeros(k).double(), atol=1e-10, rtol=0)
    assert m.embed(x).dtype == torch.float64


def test_training_leaves_pca_behind_and_the_file_keeps_it(tmp_path):
    t = torch.linspace(-1, 1, 200)[:, None]
    x = torch.cat([t, t**2], 1)
    torch.manual_seed(0)
    m = from_pca(x, 1, hidden=(16,))
    before = m.score(x).mean()
    fit(m, x, epochs=60, batch_size=50, lr=1e-2)
    assert m.score(x).mean() < before - .01
    save(m, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert torch.equal(again.reconstruct(x), m.reconstruct(x)) and type(again.encoder) is Shortcut


@pytest.mark.parametrize("args, error, message", [
    ((torch.ones(5), 1), ValueError, "x: "), ((torch.ones(5, 2, 2), 1), ValueError, "x: "), ((torch.ones(5, 3, dtype=torch.long), 1), TypeError, "x: "),
    ((torch.full((5, 3), torch.nan), 1), ValueError, "x: "), ((torch.ones(5, 3), 4), ValueError, "latent_dim: expected ≤ 3"), ((torch.ones(2, 3), 3), ValueError, "latent_dim: expected ≤ 2"),
    ((torch.ones(5, 3), 0), ValueError, "sizes: "), ((torch.ones(5, 3), 1.), TypeError, "sizes: "), ((torch.ones(5, 3), 1, (0,)), ValueError, "sizes: ")])
def test_bad_starts_are_refused(args, error, message):
    with pytest.raises(error, match=message): from_pca(*args)


def test_the_bent_path_starts_at_zero():
    torch.manual_seed(0)
    m, x = Shortcut([4, 6, 2]), torch.randn(5, 4)
    assert torch.equal(m(x), m.straight(x)) and m.bent[0].weight.abs().sum() > 0
    nn.init.ones_(m.bent[-1].bias)
    assert_close(m(x), m.straight(x) + 1)
