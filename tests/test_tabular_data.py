"""Tables: every odd column named, no kill that costs more than a row group, no damaged file taken for a table."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings, strategies as st

from vae_notes import tabular_data
from vae_notes.tabular_data import Twin, cut_by_era, cut_correlation, idle_columns, open_table, to_codes, write_twin

few = settings(max_examples=25, deadline=None, derandomize=True)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "t.parquet"
    return path, write_twin(path, 600, features=17, eras=12, group_rows=100, seed=3)


def codes_of(twin): return np.concatenate([twin.era(e).codes for e in range(twin.eras)])


# --- codes ---

@few
@given(st.integers(2, 127), st.integers(0, 60), st.integers(0, 2**30), st.sampled_from(
    ["int8", "int64", "uint8", "float16", "float32", "float64", "dictionary", "gaps"]))
def test_codes_come_back_whatever_they_were_written_as(bins, rows, seed, kind):
    c = np.random.default_rng(seed).integers(0, bins, rows)
    expected, n_gaps = c.copy(), 0
    if kind == "dictionary": column = pa.array(c).dictionary_encode()
    elif kind == "gaps":
        gap = np.random.default_rng(seed + 1).random(rows) < .3
        column, n_gaps = pa.array(c, mask=gap), int(gap.sum())
        expected[gap] = bins // 2
    elif kind.startswith("float"): column = pa.array((c / (bins - 1)).astype(kind))
    else: column = pa.array(c.astype(kind))
    if kind == "float16" and bins > 33: return  # too coarse to tell them apart
    codes, gaps = to_codes(pa.record_batch({"a": column}), ["a"], bins)
    assert codes.dtype == np.uint8 and codes.shape == (rows, 1)
    assert codes[:, 0].tolist() == expected.tolist()
    assert gaps == ({"a": n_gaps} if n_gaps else {})


def test_booleans_are_two_bins():
    codes, gaps = to_codes(pa.record_batch({"a": [True, False, None]}), ["a"], 2)
    assert codes.ravel().tolist() == [1, 0, 1] and gaps == {"a": 1}


def test_a_column_of_gaps_is_the_middle_bin():
    codes, gaps = to_codes(pa.record_batch({"a": pa.nulls(3)}), ["a"])
    assert codes.ravel().tolist() == [2, 2, 2] and gaps == {"a": 3}
    assert to_codes(pa.record_batch({"a": [np.nan, 1.]}), ["a"], missing=0)[0].ravel().tolist() == [0, 4]


@pytest.mark.parametrize("column, error, says", [
    ([0, 5], ValueError, "5 values 0…4, got 5"), ([-1, 0], ValueError, "got -1"), ([0., .26], ValueError, "got 0.26"),
    ([0., 1.25], ValueError, "got 1.25"), ([-.25, 1.], ValueError, "got -0.25"), ([np.inf, 0.], ValueError, "got inf"),
    ([-np.inf], ValueError, "got -inf"), (["a"], TypeError, "expected numbers, got string"),
    ([[1]], TypeError, "expected numbers, got list"), ([pd.Timestamp("2020-01-01")], TypeError, "expected numbers"),
    ([0, 2**40], ValueError, "got"), ([0., 4.], ValueError, "got 4")])
def test_what_is_no_bin_is_refused_by_name(column, error, says):
    with pytest.raises(error, match="'odd'") as caught: to_codes(pa.record_batch({"odd": column}), ["odd"])
    assert says in str(caught.value)


@pytest.mark.parametrize("missing", ["mode", 5, -1, 1.5, None, True])
def test_a_wrong_missing_is_refused(missing):
    with pytest.raises((TypeError, ValueError), match="missing"):
        to_codes(pa.record_batch({"a": [0]}), ["a"], missing=missing)


def test_a_column_twice_is_refused():
    batch = pa.RecordBatch.from_arrays([pa.array([0]), pa.array([1])], ["a", "a"])
    with pytest.raises(ValueError, match="'a': in the table twice"): to_codes(batch, ["a"])


# --- the twin ---

def test_an_era_does_not_depend_on_those_asked_for_before():
    a, b = Twin(200, features=9, eras=4, seed=5), Twin(200, features=9, eras=4, seed=5)
    for e in (3, 0, 2): b.era(e)
    for x, y in zip(a.era(1), b.era(1)): assert (x == y).all()
    assert not (Twin(200, features=9, eras=4, seed=6).era(1).codes == a.era(1).codes).all()


@few
@given(st.integers(1, 400), st.integers(1, 30), st.integers(0, 2**40))
def test_any_size_of_twin(rows, features, seed):
    twin = Twin(rows, features=features, seed=seed)
    assert twin.sizes.sum() == rows and len(twin.kind()) == rows
    assert len(np.unique(twin.group)) == twin.groups and (np.diff(twin.group) >= 0).all()
    assert codes_of(twin).shape == (rows, features) and codes_of(twin).max() < 5


def test_planted_rows_are_what_they_are_called():
    twin = Twin(40_000, features=60, eras=4, groups=6, anomalies=.2, turmoil=0., noise=0.)
    kind, eras = twin.kind(), [twin.era(e) for e in range(4)]
    assert abs((kind > 0).mean() - .2) < 4.5 * (.2 * .8 / 40_000)**.5
    scores = np.concatenate([e.scores for e in eras])
    assert (np.concatenate([e.kind for e in eras]) == kind).all()
    size = [scores[kind == k].var() for k in range(3)]
    assert abs(size[0] - 1) < .02 and abs(size[1] - 1) < .04 and size[2] > 2.2
    # within a group, features of scrambled rows are less alike: two thirds of the groups are left
    def alike(k):
        c = np.corrcoef(scores[kind == k].T)
        same = (twin.group[:, None] == twin.group) & ~np.eye(60, dtype=bool)
        return c[same].mean()
    assert .5 < alike(1) / alike(0) < .8
    for e in eras: assert (e.codes == e.clean).all()


def test_turmoil_has_its_share_of_eras_and_none_when_off():
    assert Twin(4000, eras=100, turmoil=.07).in_turmoil.sum() == 7
    assert not Twin(4000, eras=100, turmoil=0.).in_turmoil.any()


@pytest.mark.parametrize("settings, says", [
    ({"rows": 0}, "rows"), ({"features": 0}, "features"), ({"eras": 200}, "eras"), ({"groups": 12}, "groups"),
    ({"anomalies": 1.1}, "anomalies"), ({"noise": -.1}, "noise"), ({"noise": float("nan")}, "noise"),
    ({"turmoil": "x"}, "turmoil"), ({"signal": True}, "signal"), ({"overlap": 0}, "overlap"), ({"memory": 1.5}, "memory"),
    ({"bins": 128}, "bins"), ({"bins": 1}, "bins"), ({"seed": -1}, "seed")])
def test_wrong_dials_are_named(settings, says):
    with pytest.raises((TypeError, ValueError), match=says): Twin(**{"rows": 100, "features": 11} | settings)


@pytest.mark.parametrize("number", [-1, 4, 1.5])
def test_an_era_that_is_not_there(number):
    with pytest.raises((TypeError, ValueError), match="number"): Twin(40, features=2, eras=4).era(number)


@pytest.mark.parametrize("rho", [-1., -.5, 0., .3, .95, 1.])
def test_cut_correlation_at_two_bins(rho):
    assert abs(cut_correlation(rho, 2) - 2 / np.pi * np.arcsin(rho)) < 5e-3


# --- writing ---

def test_values_and_codes_give_one_table(tmp_path):
    twin = write_twin(tmp_path / "c.parquet", 300, features=6, eras=4)
    write_twin(tmp_path / "v.parquet", 300, features=6, eras=4, as_float=True)
    a, b = (open_table(tmp_path / f"{n}.parquet") for n in "cv")
    assert torch.equal(a.x, b.x) and (a.x.numpy() == codes_of(twin)).all()
    assert pq.read_schema(tmp_path / "v.parquet").field("feature_0000").type == pa.float32()


def test_row_groups_are_no_larger_than_asked(made):
    about = pq.ParquetFile(made[0]).metadata
    assert about.num_row_groups == 6
    assert {about.row_group(g).num_rows for g in range(6)} == {100}


def test_a_twin_that_fails_leaves_the_old_file(made, monkeypatch):
    path, twin = made
    before = path.read_bytes()
    monkeypatch.setattr(tabular_data.Twin, "_target", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError): twin.write(path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["t.parquet"]


# --- opening ---

@few
@given(st.integers(1, 60), st.integers(1, 25), st.integers(0, 2**30))
def test_any_order_of_eras_comes_out_sorted(rows, group, seed):
    import tempfile
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"era": [f"{e:04}" for e in rng.integers(1, 6, rows)], "target": rng.random(rows),
                          "feature_a": rng.integers(0, 5, rows), "feature_b": rng.integers(0, 5, rows)})
    with tempfile.TemporaryDirectory() as folder:
        frame.to_parquet(f"{folder}/t.parquet", row_group_size=group)
        table = open_table(f"{folder}/t.parquet")
        ordered = frame.sort_values("era", kind="stable")
        assert (table.x.numpy() == ordered[["feature_a", "feature_b"]].to_numpy()).all()
        assert table.row.tolist() == ordered.index.tolist()
        assert table.era.tolist() == ordered.era.astype(int).tolist()
        np.testing.assert_array_equal(table.target, ordered.target.astype(np.float32))


def test_era_and_target_may_be_missing_on_request(tmp_path):
    pd.DataFrame({"x": [0, 4], "y": [1, 2]}).to_parquet(tmp_path / "t.parquet")
    table = open_table(tmp_path / "t.parquet", features=["y", "x"], era=None, target=None)
    assert table.x.tolist() == [[1, 0], [2, 4]] and table.names == ["y", "x"]
    assert table.era.tolist() == [0, 0] and np.isnan(table.target).all()


@pytest.mark.parametrize("era", [[3, 1], ["era3", "era1"], ["3", "0001"], pd.Categorical(["3", "1"])])
def test_eras_in_every_form(tmp_path, era):
    pd.DataFrame({"era": era, "target": 0., "feature_a": [4, 0]}).to_parquet(tmp_path / "t.parquet")
    assert open_table(tmp_path / "t.parquet").era.tolist() == [1, 3]


@pytest.mark.parametrize("era", [["X", "1"], [None, "1"], [1.5, 2.], ["²", "1"], ["", "1"]])
def test_eras_that_are_no_numbers(tmp_path, era):
    pd.DataFrame({"era": era, "target": 0., "feature_a": [4, 0]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="column 'era'"): open_table(tmp_path / "t.parquet")


def test_text_for_a_target_is_refused(tmp_path):
    pd.DataFrame({"era": [1], "target": ["a"], "feature_a": [4]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(TypeError, match="column 'target'"): open_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("settings, error, says", [
    ({"features": ["feature_0001", "feature_0001"]}, ValueError, "'feature_0001' is listed twice"),
    ({"features": []}, ValueError, "no column"), ({"features": [1]}, TypeError, "a list of names"),
    ({"features": ["feature_9"]}, KeyError, "feature_9"), ({"era": "eras"}, KeyError, "did you mean 'era'"),
    ({"bins": 4}, ValueError, "feature_0"), ({"bins": 0}, ValueError, "bins"), ({"missing": "m"}, TypeError, "missing")])
def test_wrong_settings_are_named(made, settings, error, says):
    with pytest.raises(error, match=says): open_table(made[0], **settings)
    assert not Path(f"{made[0]}.codes/table.json").exists()


def test_no_rows_and_no_features(tmp_path):
    pd.DataFrame({"feature_a": np.zeros(0, int), "era": [], "target": []}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no rows"): open_table(tmp_path / "a.parquet")
    pd.DataFrame({"x": [1], "era": ["1"], "target": [1.]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="no column's name begins"): open_table(tmp_path / "b.parquet")
    with pytest.raises(FileNotFoundError): open_table(tmp_path / "c.parquet")


def test_other_settings_decode_again(made):
    path, twin = made
    assert open_table(path).x.shape == (600, 17)
    two = open_table(path, features=["feature_0004", "feature_0002"])
    assert (two.x.numpy() == codes_of(twin)[:, [4, 2]]).all()
    assert open_table(path, bins=6).bins == 6


def test_a_changed_file_is_read_again(made):
    path, twin = made
    open_table(path)
    new = write_twin(path, 600, features=17, eras=12, group_rows=100, seed=4)
    assert (open_table(path).x.numpy() == codes_of(new)).all()


@pytest.mark.parametrize("name", ["codes.u8", "table.json", "rows.safetensors"])
@pytest.mark.parametrize("harm", ["lost", "cut"])
def test_a_damaged_folder_is_made_anew(made, name, harm):
    path, twin = made
    open_table(path)
    file = Path(f"{path}.codes") / name
    if harm == "lost": file.unlink()
    else: file.write_bytes(file.read_bytes()[:-7])
    table = open_table(path)
    assert (table.x.numpy() == codes_of(twin)).all() and (np.diff(table.era) >= 0).all()


def test_a_file_that_changes_while_it_is_read_is_refused(made, monkeypatch):
    path, _ = made
    inner = tabular_data._decode
    def meanwhile(*args):
        gaps = inner(*args)
        os.utime(path)
        return gaps
    monkeypatch.setattr(tabular_data, "_decode", meanwhile)
    with pytest.raises(ValueError, match="was changed while"): open_table(path)
    monkeypatch.undo()
    open_table(path)


def test_damaged_parquet_gives_typed_errors_only(made):
    path, _ = made
    good, rng = path.read_bytes(), random.Random(0)
    for i in range(150):
        data = bytearray(good)
        for _ in range(rng.choice([1, 3, 30])):
            at = rng.randrange(len(data)) if i % 2 else rng.randrange(max(0, len(data) - 3000), len(data))
            data[at] = rng.randrange(256)
        if i % 5 == 0: del data[rng.randrange(len(data)):]
        path.write_bytes(data)
        try: open_table(path)
        except (ValueError, TypeError, KeyError): pass


KILLED = """
import sys, time
from vae_notes import tabular_data
write = tabular_data._write_json
def slow(path, state):
    write(path, state)
    print("x", flush=True)
    time.sleep(.02)
tabular_data._write_json = slow
tabular_data.open_table(sys.argv[1])
"""


def test_a_killed_run_goes_on(made):
    path, twin = made
    rng, groups = random.Random(1), []
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env=env, stdout=subprocess.PIPE)
        for _ in range(2): process.stdout.readline()
        time.sleep(rng.random() * .02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(), process.stdout.close()
        groups.append(json.loads(Path(f"{path}.codes/progress.json").read_bytes())["groups"])
    assert groups[0] >= 2 and groups[1] > groups[0]  # the second went on
    assert not Path(f"{path}.codes/table.json").exists()
    table = open_table(path)
    assert (table.x.numpy() == codes_of(twin)).all()


# --- the table ---

@few
@given(st.integers(2, 40), st.floats(.01, .9), st.integers(0, 8))
def test_split_keeps_eras_whole_and_apart(eras, share, embargo):
    twin = Twin(eras * 3, features=2, eras=eras, groups=1)
    x = torch.from_numpy(codes_of(twin))
    era = np.repeat(np.arange(eras), twin.sizes)
    table = tabular_data.Table(x, twin.names, era, np.zeros(len(x)), np.arange(len(x)))
    n_valid = max(1, round(share * eras))
    if eras - n_valid - embargo < 1:
        with pytest.raises(ValueError, match="too few"): table.split(share, embargo)
        return
    train, valid = table.split(share, embargo)
    assert valid.era[0] - train.era[-1] == embargo + 1
    assert train.era[0] == 0 and valid.era[-1] == eras - 1
    assert len(np.unique(valid.era)) == n_valid
    assert torch.equal(valid.x, x[-len(valid):]) and len(train.row) == len(train)


@pytest.mark.parametrize("settings", [{"valid": 1.5}, {"valid": -1}, {"valid": "x"}, {"embargo": -1}, {"embargo": 1.5}])
def test_wrong_splits_are_named(made, settings):
    with pytest.raises((TypeError, ValueError), match=[*settings][0]): open_table(made[0]).split(**settings)


def test_only_runs_of_rows(made):
    table = open_table(made[0])
    assert len(table[10:30]) == 20 and table[-5:].row[0] == 595
    for rows in (3, slice(None, None, 2), [1, 2]):
        with pytest.raises(TypeError, match="rows"): table[rows]
    with pytest.raises(ValueError, match="rows"): table[700:]


def test_rows_on_disk_are_the_same_rows(made):
    table = open_table(made[0])
    rows, index = table[50:400].on_disk(), np.array([3, 7, 7, 300])
    assert len(rows) == 350 and rows.shape == (350, 17)
    assert (rows[index] == table.x[50:400][index].numpy()).all() and rows[5].base is None
    assert (rows[2:9] == table.x[52:59].numpy()).all()


def test_a_table_in_memory_has_no_disk():
    table = tabular_data.Table(torch.zeros(2, 1, dtype=torch.uint8), ["a"], np.zeros(2), np.zeros(2), np.arange(2))
    with pytest.raises(ValueError, match="in memory"): table.on_disk()


@few
@given(st.integers(1, 50), st.integers(1, 6), st.integers(0, 2**30))
def test_idle_columns_against_pandas(rows, columns, seed):
    x = np.random.default_rng(seed).integers(0, 2, (rows, columns)).astype(np.uint8)
    constant, pairs = idle_columns(x)
    frame = pd.DataFrame(x)
    assert constant == [j for j in frame if frame[j].nunique() == 1]
    assert [j for _, j in pairs] == np.flatnonzero(frame.T.duplicated()).tolist()
    for i, j in pairs: assert i < j and (x[:, i] == x[:, j]).all()


@few
@given(st.integers(2, 7), st.integers(1, 60), st.integers(0, 2**30))
def test_ranks_do_not_look_at_other_eras(bins, rows, seed):
    rng = np.random.default_rng(seed)
    values, era = rng.normal(size=(rows, 2)), rng.integers(0, 3, rows)
    codes = cut_by_era(values, era, bins)
    assert codes.min() >= 0 and codes.max() < bins
    changed = np.where(era[:, None] == 0, values, values**3 + 7)  # another scale, the same order
    assert (cut_by_era(changed, era, bins) == codes).all()
    other = np.where(era[:, None] == 0, values, rng.normal(size=(rows, 2)))
    assert (cut_by_era(other, era, bins)[era == 0] == codes[era == 0]).all()


def test_ranks_with_gaps_and_ties():
    codes = cut_by_era(np.array([[1.], [np.nan], [1.], [9.]]), np.zeros(4))
    assert codes.ravel().tolist() == [1, 2, 1, 4]
    with pytest.raises(ValueError, match="era: expected 4, got 3"): cut_by_era(np.zeros((4, 1)), np.zeros(3))
