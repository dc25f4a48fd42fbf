"""What a user of the convolutional networks relies on, beyond what the chapter shows."""

import math

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from vae_notes.autoencoder import Autoencoder
from vae_notes.convolutional import ConvDecoder, ConvEncoder, Quantize, checkerboard, conv_size, output_padding, transposed_size
from vae_notes.core import generator
from vae_notes.files import load, save
from vae_notes.training import fit

few = settings(max_examples=40, deadline=None, derandomize=True)
lengths, kernels, strides, paddings = st.integers(1, 60), st.integers(1, 9), st.integers(1, 6), st.integers(0, 5)
shapes = st.tuples(st.integers(1, 3), st.integers(8, 20), st.integers(8, 20))
depths = st.sampled_from([(2,), (2, 3), (3, 2, 4)])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(n=lengths, k=kernels, s=strides, p=paddings)
def test_lengths_agree_with_torch_and_lead_back(n, k, s, p):
    assume(n + 2 * p >= k)
    m, o = conv_size(n, k, s, p), output_padding(n, k, s, p)
    assert F.conv1d(torch.zeros(1, 1, n), torch.zeros(1, 1, k), None, s, p).shape[-1] == m
    assert 0 <= o < s
    assert transposed_size(m, k, s, p, o) == n
    assert F.conv_transpose1d(torch.zeros(1, 1, m), torch.zeros(1, 1, k), None, s, p, o).shape[-1] == n


@few
@given(n=st.integers(4, 15), k=st.integers(1, 5), s=st.integers(1, 4), p=st.integers(0, 3), seed=st.integers(0, 99))
def test_the_transposed_convolution_is_the_adjoint(n, k, s, p, seed):
    assume(n + 2 * p >= k)
    x, w = randn(1, 2, n, seed=seed), randn(3, 2, k, seed=seed + 100)
    Cx = F.conv1d(x, w, None, s, p)
    y = randn(*Cx.shape, seed=seed + 200)
    Cty = F.conv_transpose1d(y, w, None, s, p, output_padding(n, k, s, p))
    assert Cty.shape == x.shape
    assert abs((Cx * y).sum() - (x * Cty).sum()) < 1e-12 * max(1., (Cx * y).abs().sum())


bad_windows = {
    "a short input": (lambda: conv_size(2, 5), ValueError, "n: 2 numbers and 0 zeros"),
    "no input": (lambda: conv_size(0, 1), ValueError, "n: expected ≥ 1, got 0"),
    "no kernel": (lambda: conv_size(5, 0), ValueError, "kernel: expected ≥ 1"),
    "no stride": (lambda: transposed_size(5, 2, 0), ValueError, "stride: expected ≥ 1"),
    "negative padding": (lambda: conv_size(5, 2, 1, -1), ValueError, "padding: expected ≥ 0"),
    "half a pixel": (lambda: conv_size(5.5, 2), TypeError, "n: expected a whole number, got 5.5"),
    "a truth": (lambda: conv_size(5, True), TypeError, "kernel: expected a whole number"),
    "o as large as s": (lambda: transposed_size(5, 2, 2, 0, 2), ValueError, "output_padding: expected < stride"),
    "negative o": (lambda: transposed_size(5, 2, 2, 0, -1), ValueError, "output_padding: expected ≥ 0"),
    "all cut off": (lambda: transposed_size(1, 2, 1, 1), ValueError, "padding: 1 cuts off"),
    "no way back": (lambda: output_padding(2, 5), ValueError, "shorter than the window of 5"),
    "no input to transpose": (lambda: transposed_size(0, 3), ValueError, "m: expected ≥ 1"),
}


@pytest.mark.parametrize("call, kind, message", bad_windows.values(), ids=bad_windows.keys())
def test_impossible_windows_are_refused(call, kind, message):
    with pytest.raises(kind, match=message.replace("(", r"\(")): call()


@few
@given(shape=shapes, channels=depths, latent=st.integers(1, 5), flat=st.booleans(), resize=st.booleans())
def test_any_size_goes_through(shape, channels, latent, flat, resize):
    encoder, decoder = ConvEncoder(shape, latent, channels), ConvDecoder(latent, shape, channels, flat, resize)
    x = torch.rand(3, *shape)
    z = encoder(x)
    assert z.shape == (3, latent)
    assert torch.equal(z, encoder(x.flatten(1)))
    out = decoder(z)
    assert out.shape[1:] == decoder.event_shape == ((math.prod(shape),) if flat else shape)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in decoder.parameters())


def test_flat_and_image_outputs_are_the_same_numbers():
    torch.manual_seed(0)
    flat = ConvDecoder(3, (2, 9, 12), (4, 5))
    image = ConvDecoder(3, (2, 9, 12), (4, 5), flat=False)
    image.load_state_dict(flat.state_dict())
    z = torch.randn(4, 3)
    assert torch.equal(flat(z), image(z).flatten(1))
    assert flat(z).min() < 0, "the last layer is linear"


def test_the_layers_are_as_the_chapter_says():
    encoder, decoder = ConvEncoder((1, 28, 28), 6), ConvDecoder(6, (1, 28, 28))
    assert encoder.layers[-1].in_features == 64 * 7 * 7
    assert sum(p.numel() for p in encoder.parameters()) == 32 * 17 + 64 * (32 * 16 + 1) + 6 * (64 * 49 + 1)
    relus = [i for i, layer in enumerate(decoder.layers) if isinstance(layer, nn.ReLU)]
    assert relus == [1, 4]
    resized = ConvDecoder(6, (1, 28, 28), resize=True)
    assert [type(layer).__name__ for layer in resized.layers[3:]] == ["Upsample", "Conv2d", "ReLU", "Upsample", "Conv2d"]


def test_a_resizing_decoder_keeps_flat_things_flat():
    torch.manual_seed(1)
    decoder = ConvDecoder(2, (1, 32, 32), (4, 4), flat=False, resize=True)
    start = torch.ones(1, 4, 8, 8)
    image = start
    for layer in decoder.layers[3:]: image = layer(image)
    inner = image[..., 6:-6, 6:-6]
    assert_close(inner, inner[..., :1, :1].expand_as(inner))


bad_nets = {
    "two sizes": (lambda: ConvEncoder((28, 28), 2), ValueError, "shape: expected 3 whole numbers, got (28, 28)"),
    "a number": (lambda: ConvEncoder(784, 2), TypeError, "shape: expected a tuple"),
    "text": (lambda: ConvEncoder("abc", 2), TypeError, "shape: expected a tuple"),
    "a half": (lambda: ConvEncoder((1, 2.5, 8), 2), TypeError, "shape: expected a whole number, got 2.5"),
    "no channels": (lambda: ConvEncoder((1, 8, 8), 2, ()), ValueError, "channels: expected at least one"),
    "zero channels": (lambda: ConvDecoder(2, (1, 8, 8), (0,)), ValueError, "channels: expected ≥ 1"),
    "no code": (lambda: ConvDecoder(0, (1, 8, 8)), ValueError, "latent_dim: expected ≥ 1"),
    "half a code": (lambda: ConvEncoder((1, 8, 8), 1.5), TypeError, "latent_dim: expected a whole"),
    "too small": (lambda: ConvEncoder((1, 3, 9), 2, (4, 4)), ValueError, "shape: (1, 3, 9) cannot be halved 2 times"),
    "wrong image": (lambda: ConvEncoder((1, 8, 8), 2)(torch.zeros(2, 8, 8)), ValueError, "got (2, 8, 8)"),
    "wrong row": (lambda: ConvEncoder((1, 8, 8), 2)(torch.zeros(2, 63)), ValueError, "x: expected shape (batch, 64)"),
    "same number of pixels": (lambda: ConvEncoder((1, 8, 8), 2)(torch.zeros(2, 1, 4, 16)), ValueError, "got (2, 1, 4, 16)"),
}


@pytest.mark.parametrize("call, kind, message", bad_nets.values(), ids=bad_nets.keys())
def test_what_does_not_fit_is_refused(call, kind, message):
    with pytest.raises(kind) as info: call()
    assert message in str(info.value)


@pytest.mark.parametrize("extra", [{}, {"flat": False}, {"resize": True}])
def test_models_are_saved_and_loaded(tmp_path, extra):
    torch.manual_seed(2)
    shape = [2, 11, 14]
    model = Autoencoder(ConvEncoder(shape, 3, [4, 5]), ConvDecoder(3, shape, [4, 5], **extra))
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    x = torch.rand(3, 2, 11, 14)
    assert torch.equal(again.encoder(x), model.encoder(x))
    assert torch.equal(again.decoder(again.encoder(x)), model.decoder(model.encoder(x)))


def test_rows_are_treated_alike_in_any_company():
    torch.manual_seed(3)
    model = Autoencoder(ConvEncoder((1, 9, 9), 3, (4,)), ConvDecoder(3, (1, 9, 9), (4,)))
    x = torch.rand(50, 81)
    whole = model.reconstruct(x)
    assert_close(torch.cat([model.reconstruct(x[:20]), model.reconstruct(x[20:])]), whole, rtol=1e-5, atol=1e-6)


def test_training_lowers_the_loss_and_repeats_itself():
    def run():
        torch.manual_seed(4)
        model = Autoencoder(ConvEncoder((1, 8, 8), 4, (8,)), ConvDecoder(4, (1, 8, 8), (8,)))
        history = fit(model, torch.rand(64, 64, generator=generator(0)), epochs=4, batch_size=16)
        return history["loss"], nn.utils.parameters_to_vector(model.parameters())
    (a, wa), (b, wb) = run(), run()
    assert a[-1] < a[0] and torch.equal(wa, wb)


codes = st.integers(0, 999).map(lambda seed: torch.randn(17, 5, generator=generator(seed)))


@few
@given(z=codes, bits=st.integers(1, 16))
def test_packing_is_what_rounding_says(z, bits):
    quantize = Quantize.fit(z, bits, tail=0.)
    packed, rounded = quantize.pack(z), quantize(z)
    assert packed.dtype == torch.uint8 and packed.shape == (17, math.ceil(5 * bits / 8))
    assert torch.equal(quantize.unpack(packed), rounded)
    step = (quantize.high - quantize.low) / (2**bits - 1)
    assert ((rounded - z).abs() <= step / 2 * (1 + 1e-3) + 1e-6).all()
    assert_close(quantize(rounded), rounded, rtol=1e-4, atol=1e-5)


def test_codes_beyond_the_ends_are_stored_as_the_ends():
    quantize = Quantize(torch.tensor([-1.]), torch.tensor([1.]), 3)
    assert_close(quantize(torch.tensor([[-5.], [9.], [1.], [-1.]])), torch.tensor([[-1.], [1.], [1.], [-1.]]))


def test_a_constant_number_is_stored_too():
    z = torch.tensor([[1., 2.], [1., 3.]])
    quantize = Quantize.fit(z, 4, tail=0.)
    assert torch.equal(quantize(z), z)


def test_tails_are_cut():
    z = torch.linspace(0, 1, 1001)[:, None]
    assert_close(Quantize.fit(z, 8, tail=.1).high, torch.tensor([.9]))
    assert_close(Quantize.fit(z, 8, tail=.1).low, torch.tensor([.1]))


def test_a_quantizer_is_saved_and_loaded(tmp_path):
    z = torch.randn(30, 4)
    quantize = Quantize.fit(z, 5)
    save(quantize, tmp_path / "q.safetensors")
    assert torch.equal(load(tmp_path / "q.safetensors").pack(z), quantize.pack(z))


bad_quantizers = {
    "no bits": (dict(bits=0), ValueError, "bits: expected ≥ 1"),
    "too many": (dict(bits=17), ValueError, "bits: expected ≤ 16"),
    "half a bit": (dict(bits=.5), TypeError, "bits: expected a whole"),
    "half": (dict(tail=.5), ValueError, "tail: expected 0 ≤ tail < ½"),
    "negative": (dict(tail=-.1), ValueError, "tail: expected"),
    "NaN": (dict(tail=math.nan), ValueError, "tail: expected"),
}


@pytest.mark.parametrize("given, kind, message", bad_quantizers.values(), ids=bad_quantizers.keys())
def test_bad_quantizers_are_refused(given, kind, message):
    with pytest.raises(kind) as info: Quantize.fit(torch.randn(9, 2), **given)
    assert message in str(info.value)


def test_other_bytes_are_refused():
    quantize = Quantize.fit(torch.randn(9, 2), 4)
    for packed in (torch.zeros(3, 2).byte(), torch.zeros(1).byte()):
        with pytest.raises(ValueError, match="packed: expected shape"): quantize.unpack(packed)
    with pytest.raises(ValueError, match="z: "): quantize.pack(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="low, high: expected low"): Quantize(torch.ones(2), torch.zeros(2))


@few
@given(seed=st.integers(0, 99), height=st.integers(2, 13), width=st.integers(2, 13), a=st.floats(.1, 3))
def test_checkerboard_power(seed, height, width, a):
    x = randn(3, height, width, seed=seed)
    even = x[:, :height // 2 * 2, :width // 2 * 2]
    power = torch.fft.fft2(even, norm="forward").abs().square()
    h, w = (n // 2 for n in even.shape[1:])
    expected = power[:, h].sum(1) + power[:, :, w].sum(1) - power[:, h, w]
    assert_close(checkerboard(x), expected)
    assert_close(checkerboard(a * x), a**2 * expected)
    assert_close(checkerboard(x + 5), expected)


@pytest.mark.parametrize("x", [torch.zeros(5), torch.zeros(1, 8), torch.full((4, 4), torch.nan)])
def test_no_image_no_checkerboard(x):
    with pytest.raises(ValueError, match="x: "): checkerboard(x)
