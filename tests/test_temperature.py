"""Hourly temperature: what any file, archive or series must survive, where the chapter does not look."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close

from vae_notes.temperature import (CLIMATES, Climatology, Trend, check_hourly, decimal_year, fill_gaps, find_gaps, hourly,
                                   local_standard, made_phoenix, made_place, on_the_hour, open_meteo, phoenix,
                                   read_temperature, season_features, series_windows, split_by_year, sun_offset, to_unit,
                                   whole_days, year_fraction)

settings.register_profile("temperature", max_examples=30, deadline=None, derandomize=True)
settings.load_profile("temperature")
seeds = st.integers(0, 2**32 - 1)


def some(n=200, first="2020-02-27 05:00", seed=0, unit="C"):
    return hourly(np.random.default_rng(seed).normal(15, 5, n), first, unit)


@pytest.fixture(scope="module")
def decade(): return made_phoenix(years=10)


# --- a series ---

@pytest.mark.parametrize("bad, error, word", [
    ([1., 2.], TypeError, "pandas Series"), (pd.Series([1., 2.]), TypeError, "hours as its index"),
    (pd.Series([1, 2], pd.date_range("2020", periods=2, freq="h")), TypeError, "floating-point"),
    (pd.Series([1., 2.], pd.date_range("2020", periods=2, freq="h")), ValueError, "attrs"),
])
def test_what_is_no_series(bad, error, word):
    with pytest.raises(error, match=word): check_hourly(bad)


def test_a_series_must_be_whole():
    x = some()
    with pytest.raises(ValueError, match="an hour after the other, got 2020-02-27 08:00:00 after 2020-02-27 06:00:00"):
        check_hourly(x.drop(x.index[2]))
    with pytest.raises(ValueError, match="without a time zone"): check_hourly(x.tz_localize("UTC"))
    with pytest.raises(ValueError, match="expected hours, got none"): check_hourly(x.iloc[:0])
    holed = x.copy()
    holed.iloc[3] = np.nan
    with pytest.raises(ValueError, match="1 without, the first at 2020-02-27 08:00:00"): check_hourly(holed, "held_out")
    assert check_hourly(x) is x


@pytest.mark.parametrize("unit, value, fine", [("C", 56.7, True), ("C", -89.2, True), ("C", 66, False), ("C", -96, False),
                                               ("F", 134, True), ("F", 150, False), ("K", 184, True), ("K", 20, False)])
def test_records_pass_and_other_units_do_not(unit, value, fine):
    if fine: hourly([value], "2020", unit)
    else:
        with pytest.raises(ValueError, match="is no temperature in"): hourly([value], "2020", unit)


@given(seeds, st.sampled_from("CFK"), st.sampled_from("CFK"), st.sampled_from("CFK"))
def test_units_there_and_back(seed, a, b, c):
    x = to_unit(some(seed=seed), a)
    y = to_unit(to_unit(to_unit(x, b), c), a)
    assert_close(y.to_numpy(), x.to_numpy(), rtol=0, atol=2e-4)
    assert y.attrs["unit"] == a and y.dtype == np.float32 and y.index.equals(x.index)


def test_unknown_units():
    for f in (lambda: hourly([1.], "2020", "R"), lambda: to_unit(some(), "celsius"), lambda: on_the_hour(["2020"], [1.], None)):
        with pytest.raises(ValueError, match="unit: expected one of"): f()


# --- rows, gaps, clocks ---

@given(seeds, st.integers(2, 60))
def test_rows_in_any_order_and_twice(seed, n):
    rng, x = np.random.default_rng(seed), some(n, seed=seed)
    order = np.concatenate([rng.permutation(n), rng.integers(n, size=5)])
    again = on_the_hour(x.index[order], x.to_numpy()[order], "C")
    pd.testing.assert_series_equal(again, x, check_freq=False)


@given(seeds)
def test_gaps_are_found_as_they_were_made(seed):
    rng, x = np.random.default_rng(seed), some(300)
    gone = rng.random(300) < .2
    gone[[0, -1]] = False
    holed = x.mask(gone)
    gaps = find_gaps(holed)
    assert gaps.hours.sum() == gone.sum() and len(gaps) == (np.diff(gone.astype(int)) == 1).sum()
    for g in gaps.itertuples(): assert holed[g.first:g.last].isna().all() and len(holed[g.first:g.last]) == g.hours
    filled = fill_gaps(holed, int(gaps.hours.max()))
    assert (filled[~gone] == x[~gone]).all() and filled.attrs["unit"] == "C"
    good = np.flatnonzero(~gone)
    assert_close(filled.to_numpy(), np.interp(np.arange(300), good, x.to_numpy()[good]).astype(np.float32), rtol=1e-5, atol=1e-4)
    if len(gaps):
        with pytest.raises(ValueError, match="are longer than"): fill_gaps(holed, int(gaps.hours.max()) - 1)


def test_rows_that_are_refused():
    t = pd.date_range("2020", periods=3, freq="h")
    with pytest.raises(ValueError, match="got none"): on_the_hour(t, [np.nan] * 3, "C")
    with pytest.raises(ValueError, match="row 1 has none"): on_the_hour([t[0], pd.NaT, t[2]], [1., 2., 3.], "C")
    with pytest.raises(ValueError, match="expected times"): on_the_hour(["first", "second"], [1., 2.], "C")
    with pytest.raises(ValueError, match="is no temperature"): on_the_hour(t, [1., 999., 2.], "C")
    with pytest.raises(ValueError, match="2 different numbers"): on_the_hour(t[[0, 1, 1]], [1., 2., 3.], "C")


@pytest.mark.parametrize("offset", [-12, -7, 0, 8, 14])
def test_local_time_moves_no_number(offset):
    x = some(400)
    y = local_standard(x, offset)
    assert y.index[0].hour == 0 and y.index[-1].hour == 23 and len(y) % 24 == 0
    at = x.index.get_loc(y.index[0] - pd.Timedelta(hours=offset))
    assert (y.to_numpy() == x.to_numpy()[at:at + len(y)]).all() and len(x) - len(y) < 48


def test_offsets_that_no_clock_has():
    for bad, error in ((5.5, TypeError), (-13, ValueError), (15, ValueError)):
        with pytest.raises(error, match="offset"): local_standard(some(), bad)
    with pytest.raises(ValueError, match="a whole day"): whole_days(some(30))
    with pytest.raises(ValueError, match="longitude"): sun_offset(200)


# --- season, trend, climatology ---

def test_every_day_has_its_own_angle():
    for year, n in ((2023, 365), (2024, 366), (1900, 365), (2000, 366)):
        f = year_fraction(pd.date_range(f"{year}-01-01", f"{year}-12-31", freq="D"))
        assert_close(f, np.arange(n) / n)
    with pytest.raises(TypeError, match="DatetimeIndex"): year_fraction([1, 2])
    with pytest.raises(ValueError, match="harmonics"): season_features(some().index, 0)


def test_features_are_sines_and_cosines():
    f = season_features(pd.DatetimeIndex(["2023-04-02 06:00"]), 2)  # a quarter of a year
    assert_close(f, torch.tensor([[1., 0., 0., -1.]]), rtol=0, atol=1e-6)


@given(st.floats(-.2, .2), st.integers(0, 364), st.integers(800, 2500))
def test_a_ramp_is_found_whatever_the_season(slope, start, days):
    t = pd.date_range("2001-01-01", periods=days * 24, freq="h") + pd.Timedelta(days=start)
    x = slope * (decimal_year(t) - 2003) + 10 - 9 * season_features(t)[:, 1].numpy()
    found = Trend.fit(hourly(x, t[0], "C"))
    assert_close(found.slope, slope, rtol=0, atol=2e-4)
    flat = found.remove(hourly(x, t[0], "C"))
    assert abs(Trend.fit(flat).slope) < 2e-4
    assert_close(found.restore(flat).to_numpy(), x.astype(np.float32), rtol=0, atol=1e-5 + 1e-4)


def test_a_trend_in_another_unit(decade):
    c, f = Trend.fit(decade), Trend.fit(to_unit(decade, "F"))
    assert_close(f.slope, c.slope * 1.8, rtol=1e-3, atol=0)
    assert_close(f.error / f.slope, c.error / c.slope, rtol=1e-2, atol=0)
    assert f.unit == "F" and c.years == 10 and c.naive < c.error
    low, high = c.interval
    assert low < c.slope < high and high - c.slope > 2 * c.error  # Student's t, not the normal
    with pytest.raises(ValueError, match="expected ≥ 730 days"): Trend.fit(decade.iloc[:700 * 24])
    assert np.isnan(Trend.fit(decade.iloc[:800 * 24]).error)


def test_the_error_of_a_trend_by_hand(decade):
    found, x = Trend.fit(decade), whole_days(decade)
    daily, t = x.to_numpy(float).reshape(-1, 24).mean(1), x.index[12::24]
    X = np.column_stack([np.ones(len(t)), decimal_year(t) - decimal_year(t).mean(), season_features(t).numpy()])
    weights, *_ = np.linalg.lstsq(X, daily, rcond=None)
    left, factor = daily - X @ weights, np.linalg.inv(X.T @ X)[1, 1]
    blocks = left[:3650].reshape(10, 365).mean(1)
    assert_close([found.slope, found.naive, found.error],
                 [weights[1], np.sqrt((left**2).sum() / (len(t) - 8) * factor), np.sqrt(365 * (blocks**2).sum() / 8 * factor)],
                 rtol=1e-3, atol=0)


def test_the_climatology_follows_its_columns(decade):
    c = Climatology.fit(decade)
    assert c.weights.shape == (7, 24)
    u = c.anomalies(decade)
    assert abs(u.mean()) < 1e-3 and u.std() < decade.std() / 2
    t = pd.DatetimeIndex(["2031-07-01 15:00", "2031-01-15 03:00"])
    assert c.at(t)[0] > c.at(t)[1] + 15
    with pytest.raises(ValueError, match="expected unit C"): c.anomalies(to_unit(decade, "F"))
    with pytest.raises(ValueError, match="365 days"): Climatology.fit(decade.iloc[:5000])


# --- windows and splits ---

@given(st.integers(1, 6), st.integers(1, 300))
def test_windows_keep_their_hours(k, stride):
    x = some(900)
    cut, starts = series_windows(x, 96 * k, stride)
    assert len(cut) == len(starts) == (900 - 96 * k) // stride + 1 and cut.dtype == torch.float32
    for i in (0, len(cut) - 1): assert (cut[i].numpy() == x[starts[i]:].to_numpy()[:96 * k]).all()


def test_windows_that_do_not_fit():
    for hours, error in ((95, ValueError), (0, ValueError), (96., TypeError)):
        with pytest.raises(error, match="hours"): series_windows(some(), hours)
    with pytest.raises(ValueError, match="at least length"): series_windows(some(), 288)


def test_years_stay_whole(decade):
    parts = split_by_year(decade, (.6, .2, .2))
    assert [p.index[0].year for p in parts] == [1970, 1976, 1978] and [p.index[-1].year for p in parts] == [1975, 1977, 1979]
    assert all(p.index[0].day_of_year == 1 for p in parts) and all(p.attrs["unit"] == "C" for p in parts)
    with pytest.raises(ValueError, match="part empty"): split_by_year(decade.iloc[:9000])


def test_made_places():
    assert made_place("city", 2, seed=1).equals(made_place("city", 2, seed=1))
    assert not made_place("city", 2, seed=1).equals(made_place("city", 2, seed=2))
    x = made_place("city", 2)
    assert (x.round() == x).all()
    y = made_place(CLIMATES["city"]._replace(trend=100.), 2)
    assert_close((y - x).iloc[-1], np.float32(100 * len(x) / 87660 - 3 * len(x) / 87660 / 10), rtol=0, atol=1.01)
    with pytest.raises(ValueError, match="climate: expected one of"): made_place("moon")
    with pytest.raises(FileNotFoundError, match="VAE_NOTES_DATA"): phoenix("/nowhere")


# --- files ---

def test_files_round_trip(tmp_path):
    x = some(96, "2021-03-01")
    for name, write in (("a.csv", "to_csv"), ("a.csv.gz", "to_csv"), ("a.parquet", "to_parquet")):
        frame = x.rename_axis("valid_time").to_frame()
        getattr(frame, write)(tmp_path / name)
        pd.testing.assert_series_equal(read_temperature(tmp_path / name, "C"), x, check_freq=False, rtol=1e-5)


@pytest.mark.parametrize("text, word", [
    ("", "No columns"), ("a,b\n1,2\n", "one column named one of"), ("time,date,x\n1,2,3\n", "one column named one of"),
    ("time,x,y\n2020-01-01,1,2\n", "column: expected one of"), ("time,x\nnever,1\n", "never"),
    ("time,x\n2020-01-01 00:00,warm\n", "warm"), ("time,x\n2020-01-01 00:30,1\n", "full hours")])
def test_bad_tables(tmp_path, text, word):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=word): read_temperature(tmp_path / "a.csv", "C")


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError): read_temperature(tmp_path / "a.csv", "C")
    (tmp_path / "a.xls").write_text("")
    with pytest.raises(ValueError, match="expected .csv"): read_temperature(tmp_path / "a.xls", "C")
    for content in (b"", b"CDF\x01rubbish", b"\x00" * 50):
        (tmp_path / "a.nc").write_bytes(content)
        with pytest.raises((ValueError, ImportError)): read_temperature(tmp_path / "a.nc")


@given(seeds)
@settings(max_examples=40)
def test_altered_files_give_typed_errors(tmp_path_factory, seed):
    folder, rng = tmp_path_factory.mktemp("t"), np.random.default_rng(seed)
    some(96, "2021-03-01").rename_axis("time").to_frame().to_parquet(folder / "a.parquet")
    data = bytearray((folder / "a.parquet").read_bytes())
    for i in rng.integers(len(data), size=8): data[i] = rng.integers(256)
    (folder / "a.parquet").write_bytes(data[:rng.integers(len(data)) if seed % 3 == 0 else None])
    try: read_temperature(folder / "a.parquet", "C")
    except (ValueError, TypeError): pass


@pytest.mark.parametrize("newer", [False, True])
def test_netcdf(tmp_path, newer):
    path, x = tmp_path / "a.nc", np.arange(96 * 4).reshape(96, 2, 2) / 10 + 280
    if newer:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, v in dict(valid_time=np.arange(96) * 3600, latitude=[10., 9.], longitude=[0., 359.]).items():
                file[name] = v
                file[name].make_scale(name)
            file["valid_time"].attrs["units"] = "seconds since 1970-01-01"
            file["t2m"] = x
            file["t2m"].attrs["units"] = "K"
            for i, name in enumerate(("valid_time", "latitude", "longitude")): file["t2m"].dims[i].attach_scale(file[name])
    else:
        netcdf = pytest.importorskip("scipy.io").netcdf_file
        with netcdf(path, "w") as file:
            for name, v in dict(valid_time=np.arange(96.) / 24, latitude=[10., 9.], longitude=[0., 359.]).items():
                file.createDimension(name, len(v))
                file.createVariable(name, "d", (name,))[:] = v
            file.variables["valid_time"].units = "days since 1970-01-01"
            file.createVariable("t2m", "d", ("valid_time", "latitude", "longitude"))[:] = x
            file.variables["t2m"].units = "K"
    found = read_temperature(path, place=(9.2, -.9))
    assert_close(found.to_numpy(), x[:, 1, 1].astype(np.float32)) and found.attrs["unit"] == "K"
    assert str(found.index[0]) == "1970-01-01 00:00:00"
    with pytest.raises(ValueError, match="from the nearest"): read_temperature(path, place=(50, 0))
    with pytest.raises(ValueError, match="unit: expected K, got 'C'"): read_temperature(path, "C", place=(9, 0))
    with pytest.raises(ValueError, match="column"): read_temperature(path, column="wind", place=(9, 0))


# --- the archive ---

@pytest.fixture
def archive(monkeypatch):
    """A server that answers as told, and its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            code, body = server.script.pop(0) if server.script else (200, None)
            if body is None:
                q = dict(p.split("=") for p in self.path.split("?")[1].split("&"))
                t = pd.date_range(q["start_date"], q["end_date"] + " 23:00", freq="h")
                body = server.change(dict(hourly_units=dict(temperature_2m="°C"), hourly=dict(
                    time=t.strftime("%Y-%m-%dT%H:%M").tolist(), temperature_2m=t.hour.astype(float).tolist())))
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args): pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.script, server.change = [], [], lambda reply: reply
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.get = lambda a="2020-12-31", b="2021-01-01", **kw: open_meteo(
        30, kw.pop("longitude", 0), a, b, **{"wait": .001, "url": f"http://127.0.0.1:{server.server_port}/", **kw})
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("longitude, offset", [(0, 0), (-112, -7), (121, 8)])
def test_hours_are_those_of_the_place(archive, longitude, offset):
    x = archive.get(longitude=longitude)
    assert len(x) == 48 and str(x.index[0]) == "2020-12-31 00:00:00"
    assert (x.to_numpy() == (x.index.hour - offset) % 24).all()


def test_patience_has_an_end(archive):
    archive.script[:] = [(429, {}), (500, b"<html>"), (503, {"reason": "busy"})]
    assert len(archive.get("2020-05-01", "2020-05-02")) == 48 and len(archive.asked) == 4
    archive.script[:] = [(503, {"reason": "busy"})] * 3
    with pytest.raises(ConnectionError, match="after 3 tries .busy."): archive.get(tries=3)


def test_a_refusal_is_final(archive):
    archive.script[:] = [(400, {"reason": "no such place"})]
    with pytest.raises(ValueError, match="no such place"): archive.get()
    assert len(archive.asked) == 1
    for a, b in (("2021-01-02", "2021-01-01"),):
        with pytest.raises(ValueError, match="last"): archive.get(a, b)
    with pytest.raises(ValueError, match="latitude"): open_meteo(91, 0, "2020-01-01", "2020-01-02")
    with pytest.raises(ValueError, match="tries"): archive.get(tries=0)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"hourly": 3}', {"hourly": {}, "hourly_units": {}},
                                  {"hourly_units": {"temperature_2m": "°F"}, "hourly": {"time": ["2020-01-01T00:00"], "temperature_2m": [1]}},
                                  {"hourly_units": {"temperature_2m": "°C"}, "hourly": {"time": [], "temperature_2m": []}},
                                  {"hourly_units": {"temperature_2m": "°C"}, "hourly": {"time": ["x"], "temperature_2m": [1]}}])
def test_replies_that_are_none(archive, body, tmp_path):
    archive.script[:] = [(200, body)]
    with pytest.raises(ValueError, match="the archive's reply"): archive.get("2020-05-01", "2020-05-02", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_cache(archive, tmp_path):
    x = archive.get(folder=tmp_path / "new")
    assert archive.get(folder=tmp_path / "new").equals(x) and len(archive.asked) == 2
    for path in (tmp_path / "new").iterdir(): path.write_bytes(path.read_bytes()[:50])
    assert archive.get(folder=tmp_path / "new").equals(x) and len(archive.asked) == 4  # damaged: asked again


def test_what_is_not_there_yet(archive, tmp_path):
    def recent(reply):
        reply["hourly"]["temperature_2m"][-30:] = [None] * 30
        return reply
    archive.change = recent
    with pytest.raises(ValueError, match="the archive has"): archive.get("2020-05-01", "2020-05-03", folder=tmp_path)
    assert not list(tmp_path.iterdir())  # a year that goes on is not kept


def test_holes_in_the_archive(archive):
    def holes(reply):
        reply["hourly"]["temperature_2m"][5:7] = [None] * 2
        return reply
    archive.change = holes
    assert archive.get("2020-05-01", "2020-05-02").iloc[5] == 5
    with pytest.raises(ValueError, match="longer than"): archive.get("2020-05-01", "2020-05-02", longest_gap=1)
