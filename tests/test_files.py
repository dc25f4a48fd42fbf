"""Files that last: every model back as it was, and no file that does harm.

The fuzz alters 10,000 files; the kill tests end programs in the middle of a
write. Both are seeded, and neither result depends on how fast the machine is.
"""

import faulthandler
import json
import math
import os
import pickle
import random
import resource
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file
from torch import nn

from vae_notes import files
from vae_notes.files import (FORMAT, Config, FileFormatError, build, config, load, load_extra, read_state,
                             read_tensors, save, write_atomic, write_state, write_tensors)
from vae_notes.likelihoods import BernoulliLikelihood, GaussianLikelihood
from vae_notes.vae import VAE, MLPDecoder, MLPEncoder, StandardNormal

ROOT = Path(__file__).resolve().parent.parent


def run(code, path):
    """The code in a fresh interpreter, with the path as its argument."""
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], cwd=ROOT, check=True, timeout=300,
                   env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def bits(tensor):
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype, device="cpu")
    return flat.copy_(tensor.detach().reshape(-1)).view(torch.uint8)


def same(a, b):
    """Equal in type, order of keys and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(k, j) and same(a[k], b[j]) for k, j in zip(a, b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(bits(a), bits(b))
    if isinstance(a, (np.ndarray, np.generic)):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, complex):
        return same([a.real, a.imag], [b.real, b.imag])
    return a == b


class Scale(nn.Module):
    def __init__(self, size, start=1.0):
        super().__init__()
        self.size, self.start = size, start
        self.a = nn.Parameter(torch.full((size,), start))


class Residual(nn.Module):
    def __init__(self, inner, weight=0.5):
        super().__init__()
        self.inner, self.weight = inner, weight


class Standardize(nn.Module):
    """A buffer that is an argument too."""

    def __init__(self, mean, names=("a", "b"), options=None):
        super().__init__()
        self.names, self.options = names, options
        self.register_buffer("mean", mean)


class Tied(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
        self.first = self.second = nn.Linear(size, size)


class Deep(nn.Module):
    """Its layers are counted by an argument."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(1, 1) for _ in range(layers)])


class Hidden(nn.Module):
    """Takes memory that its state does not show, and looks at a value."""

    def __init__(self, size, how):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(1))
        assert torch.ones(3).sum().item() == 3
        make = {"expand": lambda: torch.tensor(1.0).expand(size, size).clone(),
                "device": lambda: torch.ones(size, size, device="cpu"),
                "generator": lambda: torch.rand(size, size, generator=torch.Generator())}
        self.register_buffer("table", make[how](), persistent=False)


MINE = [Scale, Residual, Standardize, Tied]


# --- models ------------------------------------------------------------------

PACKAGE_MODELS = {
    "encoder": lambda: MLPEncoder(5, 2, hidden=(4, 3)),
    "encoder, a list of widths": lambda: MLPEncoder(5, 2, hidden=[4]),
    "encoder without hidden layers": lambda: MLPEncoder(5, 2, hidden=()),
    "decoder": lambda: MLPDecoder(2, 5, hidden=(4,)),
    "prior": lambda: StandardNormal(3),
    "Bernoulli": lambda: BernoulliLikelihood(),
    "Bernoulli unchecked": lambda: BernoulliLikelihood(validate=False),
    "Gaussian": lambda: GaussianLikelihood(0.3),
    "Gaussian, learned": lambda: GaussianLikelihood(0.3, learn=True),
    "Gaussian, one σ a feature": lambda: GaussianLikelihood(2.0, learn=True, shape=(5,)),
    "Gaussian, σ a tensor": lambda: GaussianLikelihood(torch.tensor([0.1, 0.2, 0.3])),
    "VAE": lambda: VAE(MLPEncoder(5, 2), MLPDecoder(2, 5)),
    "VAE, all parts given": lambda: VAE(
        MLPEncoder(5, 2, (3,)), MLPDecoder(2, 5, (3,)), prior=StandardNormal(2),
        likelihood=GaussianLikelihood(0.5, learn=True, shape=(5,)), beta=0.25),
    "VAE of plain layers": lambda: VAE(
        MLPEncoder(5, 2), nn.Sequential(nn.Linear(2, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 5))),
}


def shift_(model):
    """Stand in for training: every number is moved."""
    with torch.no_grad():
        for t in model.state_dict().values():
            t.add_(1) if not t.is_floating_point() else t.add_(torch.rand_like(t) / 8)
    return model


@pytest.mark.parametrize("name", PACKAGE_MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_model_of_the_package_comes_back(name, dtype, tmp_path):
    model = shift_(PACKAGE_MODELS[name]().to(dtype))
    save(model, tmp_path / "m", extra={"scaler": torch.arange(3.0)})
    again = load(tmp_path / "m")
    assert type(again) is type(model) and not again.training
    assert same(config(again), config(model))
    assert repr(again) == repr(model)
    assert same(again.state_dict(), model.state_dict())
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    assert same(load_extra(tmp_path / "m"), {"scaler": torch.arange(3.0)})


def test_a_loaded_vae_gives_the_same_numbers(tmp_path):
    model = shift_(PACKAGE_MODELS["VAE, all parts given"]()).eval()
    save(model, tmp_path / "m")
    again, x = load(tmp_path / "m"), torch.rand(6, 5)
    assert again.beta == 0.25
    assert torch.equal(again.embed(x), model.embed(x))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))
    assert torch.equal(again.log_prob(x, 7), model.log_prob(x, 7))


def test_a_model_of_your_own(tmp_path):
    inner = nn.Sequential(OrderedDict(first=Scale(3), second=nn.Linear(3, 2, bias=False)))
    model = Residual(nn.ModuleDict({"x": inner, "y": Standardize(torch.tensor([1.0, 2.0]), ["b"], {"k": (1, None)})}))
    save(shift_(model), tmp_path / "m")
    again = load(tmp_path / "m", classes=MINE)
    assert same(again.state_dict(), model.state_dict())
    assert again.inner["y"].options == {"k": (1, None)} and again.inner["y"].names == ["b"]
    with pytest.raises(FileFormatError, match="unknown class"):
        load(tmp_path / "m", classes=[Residual, Standardize])
    with pytest.raises(TypeError, match="classes"):
        load(tmp_path / "m", classes=Scale)


def test_tied_weights_stay_tied_or_are_refused(tmp_path):
    model = shift_(Tied(2))
    save(model, tmp_path / "m")
    again = load(tmp_path / "m", MINE)
    assert again.first is again.second and same(again.state_dict(), model.state_dict())
    loose = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    loose[1].weight = loose[0].weight
    shared = VAE(nn.Linear(2, 2), nn.Linear(1, 2), prior=StandardNormal(1))
    shared.decoder = shared.encoder
    for model in (loose, shared):
        with pytest.raises(TypeError, match="shared parameters"):
            save(model, tmp_path / "loose")
    assert not (tmp_path / "loose").exists()


def test_a_file_of_weights_is_an_ordinary_safetensors_file(tmp_path):
    model = PACKAGE_MODELS["VAE"]()
    save(model, tmp_path / "m.safetensors")
    theirs = load_file(tmp_path / "m.safetensors")
    assert theirs.keys() == model.state_dict().keys()
    assert all(torch.equal(theirs[k], v) for k, v in model.state_dict().items())


def test_equal_contents_are_equal_bytes_in_any_process(tmp_path):
    """Whatever the order of the dictionary and the seed of Python's hashes."""
    code = """
        import sys, torch
        from vae_notes.files import write_tensors
        tensors = {n: torch.arange(4.) for n in "dcba"} | {"i": torch.tensor(1)}
        write_tensors(sys.argv[1], tensors, {"a": 1})
        """
    run(code, tmp_path / "theirs")
    tensors = {"i": torch.tensor(1)} | {n: torch.arange(4.0) for n in "abcd"}
    write_tensors(tmp_path / "ours", tensors, {"a": 1})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_saving_and_loading_leave_the_generators_alone(tmp_path):
    model = PACKAGE_MODELS["VAE"]()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    save(model, tmp_path / "m")
    load(tmp_path / "m")
    assert same((torch.get_rng_state(), random.getstate(), np.random.get_state()), before)


def test_the_default_device_and_type_do_not_matter(tmp_path):
    model = PACKAGE_MODELS["VAE"]().double()
    state = [torch.empty(0), torch.empty(2, 0, dtype=torch.int64), np.arange(3), torch.tensor(1j)]
    default = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.float16):
            torch.set_default_dtype(dtype)
            with torch.device("meta"):
                save(model, tmp_path / "m")
                assert same(load(tmp_path / "m").state_dict(), model.state_dict())
                write_state(tmp_path / "s", state)
                found = read_state(tmp_path / "s")
            assert same(found, state) and not any(t.is_meta for t in found if isinstance(t, torch.Tensor))
    finally:
        torch.set_default_dtype(default)


# --- networks of plain layers ------------------------------------------------

EVERY_LAYER = [
    nn.Linear(2, 3), nn.Linear(2, 3, bias=False), nn.Conv1d(2, 4, 3, 2, 1),
    nn.Conv1d(2, 4, (3,), padding="same", padding_mode="circular"),
    nn.Conv2d(2, 4, (3, 1), dilation=2, groups=2, bias=False), nn.Conv3d(1, 1, 1), nn.ConvTranspose3d(1, 1, 1),
    nn.ConvTranspose1d(4, 2, 3, 2, 1, output_padding=1, groups=2), nn.ConvTranspose2d(4, 2, 3, bias=False),
    nn.BatchNorm1d(3, eps=0.1), nn.BatchNorm2d(3, affine=False, momentum=None), nn.BatchNorm3d(2),
    nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm((2, 3)), nn.LayerNorm(3, bias=False),
    nn.LayerNorm(3, elementwise_affine=False), nn.GroupNorm(2, 4, affine=False), nn.InstanceNorm1d(2, affine=True),
    nn.InstanceNorm2d(2), nn.Embedding(5, 2, padding_idx=1, max_norm=1.0), nn.Dropout(0.3, inplace=True), nn.Dropout1d(),
    nn.Dropout2d(0.1), nn.MaxPool1d(2), nn.MaxPool2d((2, 1), ceil_mode=True), nn.AvgPool1d(2),
    nn.AvgPool2d(2, divisor_override=3), nn.AdaptiveAvgPool1d(4), nn.AdaptiveAvgPool2d((None, 7)),
    nn.Upsample(scale_factor=(2.0, 3.0)), nn.Upsample(9, mode="nearest"), nn.PixelShuffle(2), nn.Flatten(0, 1),
    nn.Unflatten(1, (2, 3)), nn.Identity(), nn.ReLU(inplace=True), nn.LeakyReLU(0.3), nn.PReLU(4, 0.1), nn.ELU(2.0), nn.SELU(),
    nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus(2, 30), nn.Softmax(-1), nn.Tanh(), nn.Sigmoid(),
    nn.Sequential(OrderedDict(b=nn.ReLU(), a=nn.Linear(1, 1))), nn.Sequential(), nn.ModuleList([nn.Tanh(), nn.Linear(2, 2)]),
    nn.ModuleDict({"z": nn.Linear(1, 2), "a": nn.ModuleList()})]


def plain(module):
    """What a layer was told: its attributes without numbers and hooks."""
    return {k: v for k, v in vars(module).items() if not k.startswith("_")}


@pytest.mark.parametrize("layer", EVERY_LAYER, ids=str)
def test_every_layer_on_the_list_comes_back(layer, tmp_path):
    save(shift_(layer), tmp_path / "m")
    again = load(tmp_path / "m")
    assert type(again) is type(layer) and repr(again) == repr(layer)
    assert plain(again) == plain(layer) | {"training": False}
    assert same(again.state_dict(), layer.state_dict()) and config(again) == config(layer)


def test_the_list_of_layers_is_covered():
    assert {type(layer).__name__ for layer in EVERY_LAYER} == set(files.LAYERS)
    sized = nn.Unflatten(1, torch.Size([2, 3]))
    assert config(sized) == config(nn.Unflatten(1, (2, 3)))


class Loose(nn.Module):
    def __init__(self, **settings):
        super().__init__()


class Forgetful(nn.Module):
    def __init__(self, size):
        super().__init__()


class Grows(Scale):
    def __init__(self, size):
        super().__init__(size)
        self.size += 1


class Muddled(Scale):
    def __init__(self, size):
        super().__init__(size)
        self.size = "many"


class Extra(Scale):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


def cut():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.ones(1, 2))
    return model


UNFIT = {
    "not one of the layers": lambda: nn.Bilinear(1, 1, 1),
    "Loose: expected a constructor whose arguments all have names, got *settings": Loose,
    "Forgetful.size: the class must keep": lambda: Forgetful(1),
    "Linear.bias: the class must keep": lambda: type("Linear", (nn.Linear,), {})(1, 1),
    "Residual['inner']: expected": lambda: Residual(print),
    "Residual['weight'][1]: expected": lambda: Residual(Scale(1), [1, {2}]),
    "Grows: changed after it was built: a: shape (1,), but (2,)": lambda: Grows(1),
    "Muddled: building it from its arguments failed": lambda: Muddled(1),
    "0.weight: shape (1, 2), but (2, 2)": cut,
    "_extra_state: expected a tensor": lambda: Extra(1),
    "sparse": lambda: Standardize(torch.eye(2).to_sparse()),
}


@pytest.mark.parametrize("why", UNFIT)
def test_a_model_that_could_not_be_loaded_is_not_saved(why, tmp_path):
    with pytest.raises(TypeError) as error:
        save(UNFIT[why](), tmp_path / "m")
    assert why in str(error.value) and not list(tmp_path.iterdir())


class Curious(nn.Module):
    """Looks at a value of a tensor that it makes."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.a = nn.Parameter(torch.rand(int(torch.ones(size).sum())))


def test_a_constructor_may_look_at_values(tmp_path):
    model = Curious(3)
    save(model, tmp_path / "m")
    assert same(load(tmp_path / "m", [Curious]).state_dict(), model.state_dict())


def test_a_class_that_moved_is_found_by_its_last_name(tmp_path):
    save(Scale(2), tmp_path / "m")
    here, there = (type("Scale", (Scale,), {"__module__": place}) for place in ("here", "there"))
    assert type(load(tmp_path / "m", [here])) is here
    assert type(load(tmp_path / "m", [here, Scale])) is Scale
    with pytest.raises(FileFormatError, match="unknown class"):
        load(tmp_path / "m", [here, there])
    # but a name of ours, or of torch, stays ours or torch's
    save(nn.Linear(1, 1), tmp_path / "m")
    assert type(load(tmp_path / "m", [type("Linear", (Scale,), {"__module__": "here"})])) is nn.Linear


def test_frozen_parameters_stay_frozen(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    save(model, tmp_path / "m")
    assert [p.requires_grad for p in load(tmp_path / "m").parameters()] == [False, False, True, True]


# --- states ------------------------------------------------------------------

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.complex_numbers()
ARRAYS = hnp.arrays(
    hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.unsigned_integer_dtypes() | hnp.floating_dtypes()
    | hnp.complex_number_dtypes() | hnp.datetime64_dtypes() | hnp.timedelta64_dtypes(),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
TENSORS = hnp.arrays(st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "c8", "c16"]),
                     hnp.array_shapes(min_dims=0, min_side=0, max_side=3)).map(torch.from_numpy)
KEYS = st.none() | st.booleans() | st.integers() | st.text()
NESTS = st.recursive(
    NUMBERS | ARRAYS | TENSORS | TENSORS.map(lambda t: t.bfloat16() if t.is_floating_point() else t.mT if t.dim() > 1 else t),
    lambda parts: st.lists(parts, max_size=4) | st.lists(parts, max_size=4).map(tuple)
    | st.dictionaries(KEYS, parts, max_size=4) | st.dictionaries(KEYS, parts, max_size=4).map(OrderedDict),
    max_leaves=12)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NESTS)
def test_any_nest_comes_back_bit_for_bit(tmp_path, nest):
    with mock.patch("os.fsync"):  # the disk's pace is not the matter here
        write_state(tmp_path / "s", nest)
    assert same(read_state(tmp_path / "s"), nest)


def odd_tensors():
    big = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    found = {
        "turned": big.T, "every other": big[:, ::2], "空 间": big[1:3, 2:4], "none": torch.empty(0, 3), "twice": big, "again": big,
        "-0": torch.tensor(-0.0), "complex": torch.complex(big, -big).conj(), "expanded": torch.ones(1, 2).expand(3, 2),
        "one, expanded": torch.ones(()).expand(1), "strides 0": torch.from_numpy(np.empty(0, "f4")), "4-D": torch.rand(2, 3, 4, 5).to(
            memory_format=torch.channels_last), "parameter": nn.Parameter(torch.ones(2)), "of a graph": big.requires_grad_().exp(),
        "negative": torch.complex(big, big).conj().imag, "minus": torch._neg_view(torch.ones(2)), "nan": torch.tensor([math.nan, math.inf, -math.inf, 5e-324])}
    return found | {str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in files._DTYPES}


def test_odd_tensors_come_back(tmp_path):
    tensors = odd_tensors()
    write_tensors(tmp_path / "a", tensors, ["一", {"b": None}])
    back, info = read_tensors(tmp_path / "a")
    assert info == ["一", {"b": None}] and back.keys() == tensors.keys()
    for name, t in tensors.items():
        assert same(back[name], t.detach().resolve_neg().as_subclass(torch.Tensor)), name
        assert back[name].is_contiguous() and not back[name].requires_grad
        back[name].zero_()  # its memory is its own
    data = (tmp_path / "a").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:start])
    for name, t in tensors.items():  # so that other readers can map the file
        assert (start + head[name]["data_offsets"][0]) % (t.element_size() // (2 if t.is_complex() else 1)) == 0


ODD = {
    "": [], 0: (), -1: {}, True: ((),), None: [[None]], "1": '一\ud800\0"', "big": [2**64, -(10**5000), 2**63, -(2**64)],
    "tiny": -0.0, "bits of a NaN": struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0],
    "scalars": [np.float64(0.1), np.int8(-1), np.bool_(True), np.complex64(1j), np.datetime64("2020-01-01"),
                np.timedelta64(3, "h"), np.float16(1), np.uint64(2**64 - 1), np.longdouble(1) / 3],
    "arrays": [np.arange(6.0).reshape(2, 3).T, np.array(3), np.empty((0, 2)), np.array([1, 2], ">i4"),
               np.array(["2020-01-01"], "M8[25s]"), np.array([True]), np.arange(8, dtype="u2")[::2]],
    "ordered": OrderedDict(b=1, a=2), "config": Config("x", {"y": (1,)})}


def test_odd_values_come_back(tmp_path):
    write_state(tmp_path / "s", ODD)
    back = read_state(tmp_path / "s")
    assert same(back, ODD)
    back["arrays"][0][0] = 7  # can be written to


class Pair(NamedTuple):
    a: int


def circle():
    found = []
    found.append(found)
    return found


@pytest.mark.parametrize("wrong", [
    circle(), {1, 2}, b"bytes", Pair(1), np.array([print]), np.array(["text"]), np.str_("text"), {1.5: 1}, torch.Size([1]),
    torch.float32, np.ma.array([1]), np.array([(1, 2)], "i4,i4"), range(3), print, nn.Linear(1, 1), Path("a"),
    torch.eye(2).to_sparse(), torch.ones(2, device="meta"),
], ids=lambda value: type(value).__name__)
def test_anything_else_is_refused_by_its_place(wrong, tmp_path):
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\]"):
        write_state(tmp_path / "s", {"a": (0, wrong)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tensors, info", [
    ({"a": 1}, None), ({1: torch.ones(1)}, None), ({"__metadata__": torch.ones(1)}, None), ({}, {1, 2}), ({}, math.nan)])
def test_what_a_file_of_tensors_cannot_hold(tensors, info, tmp_path):
    with pytest.raises(TypeError):
        write_tensors(tmp_path / "a", tensors, info)
    assert not list(tmp_path.iterdir())


def test_each_kind_of_file_has_its_reader(tmp_path):
    write_tensors(tmp_path / "t", {}, None)
    write_state(tmp_path / "s", 1)
    save(Scale(1), tmp_path / "m")
    for read, path, why in [(load, "s", "holds no model, but state"), (load_extra, "t", "holds no model, but tensors"),
                            (read_state, "m", "holds no state, but model"), (read_state, "t", "no state, but tensors")]:
        with pytest.raises(FileFormatError, match=why):
            read(tmp_path / path)


def test_the_deepest_nest_that_can_be_written_can_be_read(tmp_path):
    nest = depth = 0
    with mock.patch("os.fsync"), pytest.raises(TypeError, match="nested too deeply"):
        while True:
            write_state(tmp_path / "s", nest)
            nest, depth = {"a": nest}, depth + 1
    assert depth > 50 and same(read_state(tmp_path / "s"), nest["a"])


def test_a_checkpoint_continues_bit_for_bit(tmp_path):
    def begin():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
        adam = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), amsgrad=True)
        return model, adam, torch.optim.lr_scheduler.OneCycleLR(adam, 0.1, 20)

    def steps(model, adam, schedule, n):
        for _ in range(n):
            adam.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            adam.step()
            schedule.step()

    whole = begin()
    steps(*whole, 4)
    write_state(tmp_path / "c", [*(part.state_dict() for part in whole), torch.get_rng_state()])
    steps(*whole, 4)
    resumed = begin()
    *parts, state = read_state(tmp_path / "c")
    for part, saved in zip(resumed, parts):
        part.load_state_dict(saved)
    torch.set_rng_state(state)
    steps(*resumed, 4)
    assert same([p.state_dict() for p in resumed], [p.state_dict() for p in whole])


# --- names and places ---------------------------------------------------------

@pytest.mark.parametrize("name", ["with space.safetensors", "模型 文件.safetensors", "[a]*?.x", "文" * 85, "a" * 255])
def test_any_file_name(name, tmp_path):
    write_state(tmp_path / name, 1)
    write_state(tmp_path / name, 2)
    assert read_state(tmp_path / name) == 2
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_relative_names_links_and_rights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_state("here", 1)
    os.symlink("here", "link")
    write_state("link", 2)
    assert Path("link").is_symlink() and read_state("here") == 2
    Path("plain").write_bytes(b"")
    assert stat.S_IMODE(os.stat("here").st_mode) == stat.S_IMODE(os.stat("plain").st_mode)


def test_places_that_cannot_be(tmp_path):
    for read in (load, load_extra, read_state, read_tensors):
        with pytest.raises(FileNotFoundError, match="none"):
            read(tmp_path / "none")
        with pytest.raises(IsADirectoryError):
            read(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_state(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_state(tmp_path / "none" / "a", 1)
    assert not list(tmp_path.iterdir())
    # Root could replace even a device; a pipe stands for one here.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a device"):
        write_state(tmp_path / "pipe", 1)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


# --- hostile files -------------------------------------------------------------

class Trap:
    """Unpickling this makes a file: proof that code ran."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def hostile(folder, trap):
    torch.save({"a": torch.ones(3)}, folder / "torch weights")
    torch.save(Trap(trap), folder / "torch code")
    torch.save(Trap(trap), folder / "torch old", _use_new_zipfile_serialization=False)
    (folder / "pickle").write_bytes(pickle.dumps(Trap(trap)))
    np.save(folder / "array.npy", np.array([Trap(trap)]), allow_pickle=True)
    with zipfile.ZipFile(folder / "zip", "w") as z:
        z.writestr("a.txt", "hello")
    texts = {"empty": "", "text": "hello", "json": "{}", "python": f"open({str(trap)!r}, 'w')", "zeros": "\0" * 100}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return sorted(folder.iterdir())


def test_no_code_of_a_file_is_ever_run(tmp_path):
    folder, trap = tmp_path / "files", tmp_path / "trap"
    folder.mkdir()
    for path in hostile(folder, trap):
        for read in (load, load_extra, read_state, read_tensors):
            with pytest.raises(FileFormatError, match="not a file of this package"):
                read(path)
    assert not trap.exists()
    pickle.loads((folder / "pickle").read_bytes()).close()
    assert trap.exists()  # the trap does work


def forge(path, described, tensors):
    tree = files._encode({"model": described, "extra": {}}, "file", {})
    write_tensors(path, tensors, {"kind": "model", "version": "0", "model": tree, "beside": [], "frozen": []})


NAMES = ["os.system", "builtins.eval", "torch.load", "torch.nn.Bilinear", "torch.nn.Module", "torch.nn.modules.Linear",
         "torch.nn.utils.skip_init", "torch.nn.functional.linear", "vae_notes.core.torch", "vae_notes.vae.nn",
         "vae_notes.vae.Tensor", "vae_notes.vae.Independent", "vae_notes.core.generator", "vae_notes.files.save",
         "vae_notes.files.FileFormatError", "vae_notes.__main__.VAE", "vae_notes..vae.VAE", "vae_notes.none.VAE",
         "vae_notes.vae.VAE.forward", "vae_notes", "", ".", "Scale", "__main__.Scale"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_reach_outside_are_not_followed(name, tmp_path):
    forge(tmp_path / "m", Config(name, {}), {"a": torch.ones(1)})
    with pytest.raises(FileFormatError, match="unknown class"):
        load(tmp_path / "m")


def test_what_our_modules_import_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.setattr("vae_notes.core.Bilinear", nn.Bilinear, raising=False)
    forge(tmp_path / "m", Config("vae_notes.core.Bilinear", {"in1_features": 1}), {})
    with pytest.raises(FileFormatError, match="unknown class"):
        load(tmp_path / "m")


def memory():
    """The most memory that this process ever held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


N = 10**12
ABSURD = [
    Config("torch.nn.Linear", {"in_features": N, "out_features": N}),
    Config("torch.nn.Linear", {"in_features": 10**5, "out_features": 10**5}),
    Config("torch.nn.Linear", {"in_features": 2 * 10**4, "out_features": 2 * 10**4}),
    Config("torch.nn.Linear", {"in_features": 10**5, "out_features": 10**5, "device": "cpu"}),
    Config("torch.nn.Linear", {"in_features": 10**30, "out_features": 1}),
    Config("torch.nn.Linear", {"in_features": -1, "out_features": 1}),
    Config("torch.nn.Linear", {"in_features": math.nan, "out_features": "1"}),
    Config("torch.nn.Linear", {"self": 1}),
    Config("torch.nn.Linear", 1),
    Config("torch.nn.Sequential", 1),
    Config("torch.nn.ModuleDict", {"": 1}),
    Config(3, {}),
    Config("", {}),
    None,
    [],
    {},
    Config("torch.nn.BatchNorm1d", {"num_features": 10**11}),
    Config("torch.nn.Conv2d", {"in_channels": 1, "out_channels": 1, "kernel_size": 10**6}),
    Config("torch.nn.Embedding", {"num_embeddings": 10**10, "embedding_dim": 1}),
    Config("torch.nn.PReLU", {"num_parameters": 10**11}),
    Config("torch.nn.LayerNorm", {"normalized_shape": (10**6, 10**6)}),
    Config("torch.nn.Sequential", {"0": Config("torch.nn.Linear", {"in_features": 10**6, "out_features": 10**6})}),
    Config("vae_notes.vae.MLPEncoder", {"n_features": 10**6, "latent_dim": 2, "hidden": [10**6]}),
    Config("vae_notes.likelihoods.GaussianLikelihood", {"sigma": 1.0, "learn": True, "shape": [10**6, 10**6]}),
    Config(f"{__name__}.Deep", {"layers": 10**9}),
    *(Config(f"{__name__}.Hidden", {"how": how, "size": 2 * 10**4}) for how in ("expand", "device", "generator")),
]


@pytest.mark.parametrize("described", ABSURD, ids=lambda c: str(c)[:60])
def test_absurd_models_are_refused_and_take_no_memory(described, tmp_path):
    forge(tmp_path / "m", described, {"weight": torch.ones(1, 1), "bias": torch.ones(1)})
    before = memory()
    with pytest.raises(FileFormatError, match="does not fit its class|takes no|far more memory|unknown class"):
        load(tmp_path / "m", classes=[Deep, Hidden])
    assert memory() - before < 100e6


def test_a_newer_format_says_so(tmp_path):
    write_state(tmp_path / "s", 1)
    old, new = (f'"vae_notes":"{n}"'.encode() for n in (FORMAT, FORMAT + 1))
    data = (tmp_path / "s").read_bytes()
    assert old in data
    (tmp_path / "s").write_bytes(data.replace(old, new))
    with pytest.raises(FileFormatError, match=f"format {FORMAT + 1}.*update vae_notes"):
        read_state(tmp_path / "s")


def test_an_argument_that_a_later_version_dropped_or_renamed(tmp_path):
    tensors = MLPEncoder(5, 2).state_dict()
    forge(tmp_path / "m", Config("vae_notes.vae.MLPEncoder", {"n_features": 5, "latent_dim": 2, "old": 1}), tensors)
    with pytest.raises(FileFormatError, match=r"takes no \['old'\]"):
        load(tmp_path / "m")
    # one that it has since gained, with a default, is no obstacle
    forge(tmp_path / "m", Config("vae_notes.vae.MLPEncoder", {"n_features": 5, "latent_dim": 2}), tensors)
    assert same(load(tmp_path / "m").state_dict(), tensors)


# --- ten thousand altered files -------------------------------------------------

MUTANTS = 10_000


def fuzz_models():
    conv = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.BatchNorm1d(2), nn.Upsample(scale_factor=2), nn.Flatten(),
                         nn.Unflatten(1, (2, 4)), nn.Dropout(0.1), nn.Embedding(3, 2), nn.PReLU(2), nn.GroupNorm(1, 2))
    return [shift_(PACKAGE_MODELS["VAE, all parts given"]()), nn.ModuleDict({"c": conv, "s": Scale(2), "t": Tied(1)}),
            Standardize(torch.arange(2.0), options={"k": [1, (math.inf,)]})]


def fuzz_state():
    model = nn.Linear(2, 1)
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    return {"model": model.state_dict(), "optimizer": adam.state_dict(), "rng": (3, tuple(range(9)), None), 1: math.nan,
            "np": [np.arange(3), np.float64(0.5), np.array(["2020"], "M8[D]")], "big": 2**80, "c": torch.tensor(1j)}


def refit(data):
    """The checksum that fits the altered file, as a forger would put it."""
    data = bytearray(data)
    at = files._CHECKSUM.search(data)
    if at:
        data[at.start():at.end()] = files._checksum(data).encode()
    return bytes(data)


def alter_bytes(data, rng):
    data = bytearray(data)
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.randrange(7)
    if kind == 0:  # flipped bits, as often in the header as in the numbers
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:  # cut short
        del data[a:]
    elif kind == 2:  # a piece lost
        del data[a:min(b, a + 64)]
    elif kind == 3:  # bytes put in
        data[a:a] = rng.randbytes(rng.choice([1, 8, 100]))
    elif kind == 4:  # two blocks exchanged
        n = min(rng.choice([1, 8, 64]), b - a, len(data) - b)
        data[a:a + n], data[b:b + n] = data[b:b + n], data[a:a + n]
    elif kind == 5:  # another length of the header
        length = rng.choice([0, 1, len(data), 2**31, 2**63, 2**64 - 1, rng.randrange(2 * len(data))])
        data[:8] = length.to_bytes(8, "little")
    else:  # a byte overwritten by one that means something to JSON
        data[rng.randrange(len(data))] = rng.choice(b'{}[]",:\\0919-eE.tfn\0\xff')
    return bytes(data)


def places(tree, path=()):
    yield path
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for k, v in pairs:
        yield from places(v, (*path, k))


def put(tree, path, value, rng):
    """`tree` with another value, or key, at `path`."""
    if not path:
        return value
    parent = tree
    for k in path[:-1]:
        parent = parent[k]
    if rng.random() < 0.15:
        del parent[path[-1]]
    elif isinstance(parent, dict) and rng.random() < 0.2:
        parent[str(value)[:50]] = parent.pop(path[-1])
    else:
        parent[path[-1]] = value
    return tree


WEIRD = [None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, 2**70, N, 10**30, 0.5, -0.0, 1e308, math.nan, math.inf, "", "a",
         "tensor", "torch.nn.Linear", "os.system", "\ud800", "9" * 5000, [], {}, [[]], [None, None], {"tuple": []}, {"tuple": 1},
         {"dict": [[[], 1]]}, {"dict": 1}, {"tensor": "none"}, {"array": ["|O", [1], "a"]}, {"array": ["<f8", [N, N], "a"]},
         {"scalar": ["<f8", "00"]}, {"int": "zz"}, {"float": "00"}, {"Config": ["os.system", {"dict": []}]}, {"unknown": 1}]


def alter_json(data, rng):
    """A file whose form is right and whose words are not."""
    length = int.from_bytes(data[:8], "little")
    head, body = json.loads(data[8:8 + length]), data[8 + length:]
    info = json.loads(head["__metadata__"]["info"])
    for _ in range(rng.choice([1, 1, 2, 5])):
        which = rng.choice(["head", "info", "info", "info"])
        path = rng.choice(list(places(head if which == "head" else info)))
        other = info
        for k in rng.choice(list(places(info))):
            other = other[k]
        value = json.loads(json.dumps(rng.choice([rng.choice(WEIRD), other])))
        if which == "info":
            info = put(info, path, value, rng)
        else:
            head = put(head, path, value, rng)
    if rng.random() < 0.02:
        info = put(info, rng.choice(list(places(info))), json.loads("[" * 500 + "]" * 500), rng)
    if isinstance(head, dict) and isinstance(head.get("__metadata__"), dict) and "info" in head["__metadata__"]:
        head["__metadata__"]["info"] = json.dumps(info)
    line = json.dumps(head, separators=(",", ":")).encode()
    return len(line).to_bytes(8, "little") + line + body


def test_ten_thousand_altered_files(tmp_path):
    originals = []
    for i, model in enumerate(fuzz_models()):
        save(model, tmp_path / f"{i}", extra={"scaler": torch.arange(2.0), "place": (1, 2)})
        originals.append((tmp_path / f"{i}").read_bytes())
    write_state(tmp_path / "s", fuzz_state())
    originals += 2 * [(tmp_path / "s").read_bytes()]
    def load_mine(path):
        return load(path, MINE)

    path, rng, before, outcomes = tmp_path / "mutant", random.Random(0), memory(), {}
    faulthandler.dump_traceback_later(300, exit=True)  # if a reader hangs
    for i in range(MUTANTS):
        data = rng.choice(originals)
        meant_for = read_state if data == originals[-1] else load_mine
        kind = rng.choice(["bytes", "bytes, checksum refitted", "json", "json, checksum refitted"])
        mutant = (alter_bytes if kind.startswith("bytes") else alter_json)(data, rng)
        if "refitted" in kind:
            mutant = refit(mutant)
        path.write_bytes(mutant)
        for reader in {meant_for, rng.choice([load_mine, read_state, load_extra, read_tensors])}:
            try:
                reader(path)
                outcome = "read"
            except FileFormatError as error:
                assert str(path) in str(error) and len(str(error)) < 2000
                outcome = "refused"
            except BaseException as error:
                raise AssertionError(f"mutant {i}, {kind}: {mutant!r}") from error
            if outcome == "read" and "refitted" not in kind:
                assert mutant == data
            outcomes[kind, outcome] = outcomes.get((kind, outcome), 0) + 1
    faulthandler.cancel_dump_traceback_later()
    assert memory() - before < 200e6
    # The forger's files must not all fail for one reason at the door.
    assert outcomes["json, checksum refitted", "read"] > 100 and outcomes["bytes, checksum refitted", "read"] > 100
    print(outcomes, f"{(memory() - before) / 1e6:.0f} MB more at most")


def test_every_single_flipped_bit_is_noticed(tmp_path):
    write_state(tmp_path / "s", torch.arange(3.0))
    data = (tmp_path / "s").read_bytes()
    for i in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[i // 8] ^= 1 << i % 8
        (tmp_path / "s").write_bytes(flipped)
        with pytest.raises(FileFormatError):
            read_state(tmp_path / "s")


# --- killed in the middle of a write ---------------------------------------------

WRITER = """
    import os, random, signal, sys, time
    from pathlib import Path
    import torch
    from vae_notes.files import read_state, write_state

    def state(i): return {"i": i, "w": torch.full((500_000,), float(i))}
    def whole(path):
        found = read_state(path)
        return found["w"].eq(found["i"]).all().item() and len(found["w"]) == 500_000
    def child(work):
        if (pid := os.fork()) == 0:
            torch.set_num_threads(1)
            try: work()
            finally: os._exit(1)
        return pid
    def forever(path, i=0):
        while True: write_state(path, state(i := i + 1))

    path, rng = Path(sys.argv[1]), random.Random(0)
    torch.set_num_threads(1)
    """

KILLED = WRITER + """
    write_state(path, state(0))
    for _ in range(20):
        pid = child(lambda: forever(path))
        time.sleep(.02 + .1 * rng.random())
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        assert whole(path)
    """

TWO = WRITER + """
    pids = [child(lambda i=i: forever(path, i)) for i in (0, 10**6)]
    while not path.exists(): time.sleep(.01)
    for _ in range(50): assert whole(path)
    for pid in pids: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    assert whole(path)
    """


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_writer_killed_twenty_times_leaves_a_whole_file(tmp_path):
    run(KILLED, tmp_path / "run")
    litter = [p for p in tmp_path.iterdir() if p.name != "run"]
    assert all(p.name.startswith(".vae_notes-") and p.suffix == ".part" for p in litter)
    # A later write sweeps up, but not what may still be someone's work.
    for part in litter:
        os.utime(part, (0, time.time() - 4000))
    busy = tmp_path / ".vae_notes-busy.part"
    busy.write_bytes(b"")
    write_state(tmp_path / "other", 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [busy.name, "other", "run"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_two_writers_at_once_leave_a_whole_file(tmp_path):
    run(TWO, tmp_path / "run")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_state(tmp_path / "s", "old")
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space"):
                write_state(tmp_path / "s", "new")
        assert read_state(tmp_path / "s") == "old" and len(list(tmp_path.iterdir())) == 1


def test_threads_that_write_the_same_file(tmp_path):
    def work(i):
        for _ in range(20):
            write_state(tmp_path / "s", [i] * 100)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert read_state(tmp_path / "s") in [[i] * 100 for i in range(4)]
    assert len(list(tmp_path.iterdir())) == 1
