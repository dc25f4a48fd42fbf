"""What a user of the VRAE relies on, beyond what its chapter shows."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close

from vae_notes import fit, generator, load, save
from vae_notes.diagnostics import diagnose
from vae_notes.vrae import (VRAE, KeyTable, OwnScan, Recurrent, RollDecoder, RollEncoder, SongClassifier, TanhScan, code_walk, frame_f1,
                            keep_expected, made_up_music, made_up_windows, neighbour_accuracy, note_f1)

KEYS, FRAMES = 6, 8
CELLS, INPUTS, CODES = ("rnn", "gru", "lstm"), ("own", "zeros", "sampled", "teacher"), ("start", "every", "spread")


def rolls(n: int = 5, frames: int = FRAMES, seed: int = 0) -> torch.Tensor:
    return (torch.rand(n, frames, KEYS, generator=generator(seed)) < .3).float()


def model(seed: int = 0, **options) -> VRAE:
    torch.manual_seed(seed)
    return VRAE(**dict(n_keys=KEYS, hidden=7, latent=3, frames=FRAMES) | options)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("code", CODES)
def test_every_combination_trains_saves_and_plays(cell, inputs, code, tmp_path):
    m, x = model(cell=cell, inputs=inputs, code=code, reverse=True, step=3), rolls(20)
    dropout = .5 if inputs == "teacher" else 0.
    m = model(cell=cell, inputs=inputs, code=code, reverse=True, step=3, dropout=dropout)
    fit(m, (x.bool(),), epochs=2, batch_size=7, progress=False)
    save(m, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert torch.equal(again.embed(x), m.embed(x))
    made = m.sample(3, 11, generator(1))
    assert made.shape == (3, 11, KEYS) and set(made.unique().tolist()) <= {0., 1.}
    assert torch.equal(made, again.sample(3, 11, generator(1)))
    assert_close(m.log_prob(x.bool(), 5), m.log_prob(x, 5))
    assert m.elbo(x, n_samples=3).value.shape == (20,)
    assert diagnose(m, x, n_samples=5).rate >= 0


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("code", CODES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), cut=st.integers(0, 9), seed=st.integers(0, 99))
def test_a_piece_is_treated_alike_in_any_company(cell, code, n, cut, seed):
    m, x = model(cell=cell, code=code), rolls(n, seed=seed)
    for method in (m.embed, m.reconstruct, lambda x: m.log_prob(x, 3)):
        whole = method(x)
        assert_close(torch.cat([method(p) for p in (x[:cut], x[cut:]) if len(p)]), whole)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("reverse", [False, True])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(frames=st.integers(1, FRAMES), step=st.integers(1, 4))
def test_frames_that_are_none_change_nothing(cell, code, reverse, frames, step):
    m = model(cell=cell, code=code, reverse=reverse, step=step)
    x = rolls(4, frames)
    longer = torch.cat([x, -torch.ones(4, FRAMES - frames, KEYS)], 1)
    assert_close(m.embed(longer), m.embed(x))
    assert_close(m.log_prob(longer, 1), m.log_prob(x, 1), rtol=.2, atol=5.)  # other noise: its seed hashes the row
    z = m.embed(x)
    assert_close(m._log_lik(longer, z), m._log_lik(x, z))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_scans_differentiate_as_autograd_does(steps):
    torch.manual_seed(steps)
    inputs = [torch.randn(s).double().requires_grad_() for s in ((steps, 2, 3), (2, 3), (3, 3))]
    assert torch.autograd.gradcheck(TanhScan.apply, inputs)
    more = [torch.randn(s).double().requires_grad_() for s in ((3, 4), (4, 3), (4,))]
    assert torch.autograd.gradcheck(OwnScan.apply, inputs + more)


def test_gradients_of_the_model_are_those_of_plain_loops():
    m, x = model(hidden=40).double(), rolls(9).double()
    loss = m.loss(x, generator=generator(3))
    loss.backward()
    ours = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    layer, eps = m.encoder.layer, torch.randn(9, 3, generator=generator(3), dtype=torch.float64)
    h = x.new_zeros(9, 40)
    for t in range(FRAMES): h = torch.tanh(layer.inputs(x[:, t]) + h @ layer.weight.T)
    mu, logvar = m.encoder.heads(h).chunk(2, -1)
    z = mu + (.5 * logvar).exp() * eps
    logits = m.decoder.play(z, FRAMES)[0].transpose(0, 1)
    kl = .5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
    nll = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2))
    plain = (nll + kl).mean()
    plain.backward()
    assert_close(loss, plain)
    for p, mine in zip(m.parameters(), ours): assert_close(p.grad, mine)


def test_two_trainings_give_the_same_bits():
    ends = []
    for _ in range(2):
        m = model(inputs="teacher", dropout=.3)
        fit(m, (rolls(30),), epochs=2, batch_size=8, seed=5, progress=False)
        ends.append(m.embed(rolls(30)))
    assert torch.equal(*ends)


def test_half_precision_free_dtypes_are_kept():
    m = model().double()
    assert m.embed(rolls().double()).dtype == torch.float64
    assert m.embed(rolls().bool()).dtype == torch.float64


bad = {
    "cell": (lambda: model(cell="tanh"), ValueError, "cell: expected one of"),
    "inputs": (lambda: model(inputs="none"), ValueError, "inputs: expected one of"),
    "code": (lambda: model(code="end"), ValueError, "code: expected one of"),
    "dropout": (lambda: model(inputs="teacher", dropout=1.), ValueError, "dropout: expected a share"),
    "dropout alone": (lambda: model(dropout=.1), ValueError, "only for inputs"),
    "no keys": (lambda: model(n_keys=0), ValueError, "n_keys: expected ≥ 1"),
    "half a step": (lambda: model(step=.5), TypeError, "step: expected a whole number"),
    "negative beta": (lambda: model(beta=-1.), ValueError, "beta"),
    "other keys": (lambda: model().embed(rolls()[:, :, :4]), ValueError, "x: expected shape"),
    "a list": (lambda: model().embed([1]), TypeError, "x: expected a torch.Tensor"),
    "too loud": (lambda: model().embed(2 * rolls()), ValueError, "0 to 1"),
    "half a frame missing": (lambda: model().embed(rolls().index_fill(2, torch.tensor([0]), -1.)), ValueError, "whole frames"),
    "a hole": (lambda: model().embed(rolls().index_fill(1, torch.tensor([2]), -1.)), ValueError, "whole frames"),
    "no frame at all": (lambda: model().embed(-torch.ones(1, 4, KEYS)), ValueError, "whole frames"),
    "NaN": (lambda: model().embed(rolls() * math.nan), ValueError, "finite"),
    "too long for spread": (lambda: model(code="spread").embed(rolls(2, 9)), ValueError, "at most 8 frames"),
    "frames": (lambda: model().generate(torch.zeros(1, 3), 0), ValueError, "frames: expected ≥ 1"),
    "codes": (lambda: model().generate(torch.zeros(3)), ValueError, "z: expected shape"),
    "rho": (lambda: code_walk(torch.zeros(3), 4, 1.1), ValueError, "rho: expected"),
    "rows": (lambda: code_walk(torch.zeros(3), 4, codes=torch.randn(3, 3)), ValueError, "codes: expected more than 3"),
    "codes of a walk": (lambda: code_walk(torch.zeros(3), 4, codes=torch.randn(9, 2)), ValueError, "codes: expected shape"),
    "rolls of two shapes": (lambda: frame_f1(rolls(), rolls(1)), ValueError, "y: expected the shape of x"),
    "notes of two shapes": (lambda: note_f1(rolls(), rolls(1)), ValueError, "y: expected the shape of x"),
    "NaN to judge": (lambda: note_f1(rolls(), rolls() * math.nan), ValueError, "y: expected finite"),
    "no windows": (lambda: made_up_windows(0, 8, range(30, 80)), ValueError, "n: expected ≥ 1"),
    "classes": (lambda: SongClassifier(model().encoder, 1), ValueError, "classes: expected ≥ 2"),
}


@pytest.mark.parametrize("call, kind, message", bad.values(), ids=bad.keys())
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind, match=message): call()


@pytest.mark.parametrize("f1", [frame_f1, note_f1])
def test_f1_knows_its_ends(f1):
    x = rolls(9) > 0
    assert f1(x, x) == 1
    assert f1(x, x & False) == 0 == f1(x & False, x) and f1(x, ~x) < 1
    assert f1(x & False, x & False) == 1
    assert f1(x, x.float() * .6) == 1  # probabilities are cut at ½


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999))
def test_f1_is_symmetric_bounded_and_forgives_more_with_more_time(seed):
    x, y = rolls(3, seed=seed), rolls(3, seed=seed + 1)
    for f1 in (frame_f1, note_f1):
        assert 0 <= f1(x, y) <= 1
        assert f1(x, y) == pytest.approx(f1(y, x))
    assert note_f1(x, y, 0) <= note_f1(x, y, 1) <= note_f1(x, y, 5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999))
def test_as_many_keys_as_expected_and_the_likeliest(seed):
    p = torch.rand(12, 7, generator=generator(seed))
    down = keep_expected(p)
    assert torch.equal(down.sum(1).float(), p.sum(1).round())
    assert all(not k.any() or k.all() or r[k].min() >= r[~k].max() for r, k in zip(p, down))


def test_neighbours_that_overlap_do_not_count():
    song = torch.tensor([0, 0, 0, 1, 1, 1])
    start = torch.tensor([0, 20, 40, 0, 20, 40])
    codes = torch.tensor([[0.], [.1], [5.], [1.], [1.1], [5.1]])
    assert neighbour_accuracy(codes, song, start, 40).tolist() == [0, 0, 0, 0, 0, 0]
    assert neighbour_accuracy(codes, song, start, 20).tolist() == [1, 1, 0, 1, 1, 0]


def test_tables_are_probabilities():
    x = rolls(200, 3, seed=1)[..., :2]
    for memory in (False, True):
        table = KeyTable(x, memory)
        every = torch.cartesian_prod(*[torch.tensor([0., 1.])] * 6).reshape(-1, 3, 2)
        assert_close(table.log_prob(every).exp().sum().item(), 1.)
        made = table.generate(4000, 3, generator(0))
        error = (made.mean((0, 1)) - x.mean((0, 1))).abs().max()
        assert error < .05, error


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), frames=st.integers(1, 60))
def test_made_up_music_fits_any_keys(seed, frames):
    import numpy as np
    for keys in (range(40, 60), (30, 33, 35, 60, 61)):
        roll = made_up_music(np.random.default_rng(seed), frames, keys)
        assert roll.shape == (frames, len(keys)) and roll.dtype == bool
    assert made_up_windows(5, frames, range(40, 60), seed).shape == (5, frames, 20)


def test_a_step_less_layer_has_no_part_in_a_state():
    for cell, states in (("rnn", 1), ("gru", 1), ("lstm", 2)):
        assert Recurrent(2, 3, cell).states == states
    assert RollEncoder(KEYS, 4, 2).latent_dim == RollDecoder(2, KEYS, 4).latent_dim == 2


def test_classifier_copies_its_encoder(tmp_path):
    m = model()
    classifier = SongClassifier(m.encoder, 3)
    before = m.encoder.heads.weight.clone()
    fit(classifier, (rolls(12), torch.arange(12) % 3), epochs=2, batch_size=4, progress=False)
    assert torch.equal(before, m.encoder.heads.weight)
    save(classifier, tmp_path / "c.safetensors")
    assert torch.equal(load(tmp_path / "c.safetensors")(rolls()), classifier(rolls()))
