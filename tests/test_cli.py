"""The commands: every wrong key named, every row in its place, files whole or not at all."""

import configparser
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import assume, given, settings, strategies as st

from vae_notes import cli
from vae_notes.autoencoder import mlp
from vae_notes.cli import CONFIG, check_config, read_config, train
from vae_notes.files import load, load_extra, save
from vae_notes.tabular_data import Twin, write_twin
from vae_notes.tabular_vae import TabularVAE

few = settings(max_examples=30, deadline=None, derandomize=True)
ROOT = Path(__file__).resolve().parent.parent
KEYS = [(section, key) for section, keys in CONFIG.items() for key in keys]


def small(tmp_path, **changes):
    config = check_config({
        "model_params": {"name": "Small", "in_channels": 12, "latent_dim": 3},
        "data_params": {"twin": {"rows": 600, "eras": 20, "groups": 3}, "train_batch_size": 64, "embargo": 1},
        "trainer_params": {"max_epochs": 2}, "logging_params": {"save_dir": str(tmp_path / "logs"), "name": "small"}})
    for section, keys in changes.items(): config[section] |= keys
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(small(tmp_path_factory.mktemp("run")), progress=False)


def refused(capsys, command, *args, **kwargs):
    with pytest.raises(SystemExit) as stop: command(*args, **kwargs)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and text.startswith(command.__name__ + ": ") and text.count("\n") == 1
    return text


# --- the configuration ---

def test_the_notes_file_says_what_the_notes_say():
    c = read_config(ROOT / "configs/numerai_vae.yaml")
    assert c["model_params"] | {"hidden": None} == {
        "name": "NumeraiVAE", "in_channels": 1191, "latent_dim": 32, "hidden": None}
    assert c["data_params"]["data_path"] == "/train.parquet" and c["data_params"]["num_workers"] == 8
    assert c["data_params"]["train_batch_size"] == c["data_params"]["val_batch_size"] == 4096
    assert c["exp_params"] == {"LR": .005, "weight_decay": 0., "scheduler_gamma": .95, "kld_weight": .00025,
                               "manual_seed": 1265}
    assert c["trainer_params"]["gpus"] == [1] and c["trainer_params"]["max_epochs"] == 300
    assert c["logging_params"] == {"save_dir": "logs/", "name": "NumeraiVAE"}


def test_defaults_pass_their_own_checks():
    whole = check_config(None)
    assert check_config(whole) == whole
    assert whole["exp_params"] == read_config(ROOT / "configs/numerai_vae.yaml")["exp_params"]


@pytest.mark.parametrize("section, key", KEYS)
@pytest.mark.parametrize("value", [object(), b"x", {1, 2}, -1, float("nan"), float("inf"), True])
def test_a_wrong_value_is_named(section, key, value):
    if (value is True and CONFIG[section][key].kind is bool) or (key == "gpus" and value == -1): return
    with pytest.raises((TypeError, ValueError), match=f"{section}.{key}: expected"):
        check_config({section: {key: value}})


@few
@given(st.sampled_from(KEYS), st.integers(0, 100), st.sampled_from(["drop", "double", "swap", "case"]))
def test_a_slip_of_the_pen_is_put_right(where, at, slip):
    section, key = where
    i = at % len(key)
    wrong = {"drop": key[:i] + key[i + 1:], "double": key[:i] + key[i] + key[i:], "case": key.swapcase(),
             "swap": key[:i] + key[i + 1:i + 2] + key[i] + key[i + 2:]}[slip]
    assume(wrong not in CONFIG[section] and len(wrong) > 1)
    with pytest.raises(ValueError) as caught: check_config({section: {wrong: 1}})
    assert f"{section}.{wrong}" in str(caught.value)
    if not any(wrong in keys for keys in CONFIG.values()) and len(key) > 3:
        assert f"did you mean '{key}'" in str(caught.value)


@pytest.mark.parametrize("text, says", [
    ("[1, 2]", "expected sections"), ("model: {}", "model: no such section"), ("model_params: [1]", "expected keys"),
    ("exp_params: {kld: 1}", "did you mean 'kld_weight'"), ("exp_params: {LR: 1, LR: 2}", "LR: given twice"),
    ("model_params: {LR: 1}", "belongs into exp_params"), ("a: [", "not YAML"), ("\t", "not YAML"),
    ("data_params: {twin: {rows: 5, eras: 9}}", "twin.eras"), ("data_params: {twin: {}}", "twin.rows"),
    ("data_params: {twin: {rows: 9, features: 3}}", "twin.features: 3, but"),
    ("data_params: {twin: 3}", "twin: expected a mapping"), ("!!python/name:os.system x", "not YAML"),
    ("exp_params: {LR: '0.1'}", "exp_params.LR: expected a number"), ("exp_params: {LR: 0}", "> 0, got 0")])
def test_files_that_are_refused(tmp_path, text, says):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises((TypeError, ValueError)) as caught: read_config(tmp_path / "c.yaml")
    assert says in str(caught.value) and "c.yaml" in str(caught.value)


def test_bytes_are_no_yaml(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not YAML"): read_config(tmp_path / "c.yaml")


def test_an_empty_file_is_the_notes_model(tmp_path):
    (tmp_path / "c.yaml").write_text("")
    assert read_config(tmp_path / "c.yaml") == check_config({})
    (tmp_path / "c.yaml").write_text("exp_params:\n  LR: 5e-4\n")
    assert read_config(tmp_path / "c.yaml")["exp_params"]["LR"] == 5e-4


# --- training ---

def test_a_run_leaves_what_it_promises(run):
    names = {p.name for p in run.iterdir()}
    assert names >= {"config.yaml", "history.csv", "checkpoint.safetensors", "model.safetensors", "bins.safetensors",
                     "history.png", "scores.png", "latent.png"}
    assert load_extra(run / "model.safetensors") == {"features": [f"feature_{j:04}" for j in range(12)]}
    history = pd.read_csv(run / "history.csv")
    assert len(history) == 2
    for v in ("", "valid_"):  # one weight of the KL in training and validation
        np.testing.assert_allclose(history[f"{v}loss"], history[f"{v}distortion"] + history[f"{v}rate"], rtol=1e-5)
    assert read_config(run / "config.yaml")["model_params"]["name"] == "Small"


def test_every_run_has_a_folder_and_the_seed_decides(run, tmp_path):
    first, second = (train(small(tmp_path), progress=False) for _ in range(2))
    assert (first.name, second.name) == ("version_0", "version_1")
    weights = [load(f / "model.safetensors").state_dict() for f in (run, first, second)]
    other = train(small(tmp_path, exp_params={"manual_seed": 1}), progress=False)
    for name, w in weights[0].items(): assert torch.equal(w, weights[1][name]) and torch.equal(w, weights[2][name])
    assert any(not torch.equal(w, load(other / "model.safetensors").state_dict()[n]) for n, w in weights[0].items())


def test_low_memory_gives_the_same_numbers(run, tmp_path):
    other = train(small(tmp_path, data_params={"low_memory": True}), progress=False)
    a, b = (load(f / "model.safetensors").state_dict() for f in (run, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_resume_goes_on_with_the_last_run(run, tmp_path):
    half = small(tmp_path, trainer_params={"max_epochs": 1})
    begun = train(half, progress=False)
    with pytest.raises(ValueError, match="exp_params.LR is 0.1, and was 0.005"):
        train(small(tmp_path, exp_params={"LR": .1}), resume=True, progress=False)
    ended = train(small(tmp_path), resume=True, progress=False)
    assert ended == begun
    a, b = (load(f / "model.safetensors").state_dict() for f in (run, ended))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="resume: there is no run"): train(small(tmp_path), resume=True)


def test_a_table_of_another_width_is_refused(tmp_path):
    write_twin(tmp_path / "t.parquet", 60, features=5)
    config = small(tmp_path, data_params={"twin": None, "data_path": str(tmp_path / "t.parquet")})
    with pytest.raises(ValueError, match="in_channels: 12, but .* has 5 columns"): train(config, progress=False)
    assert not (tmp_path / "t.parquet.codes").exists()


def test_data_paths(tmp_path):
    for path, says in [(None, "no file given"), (str(tmp_path / "x.parquet"), "no such file"),
                       (str(ROOT / "settings.ini"), "not a Parquet file")]:
        config = small(tmp_path, data_params={"twin": None, "data_path": path})
        with pytest.raises((ValueError, FileNotFoundError), match=says): train(config, progress=False)


def test_the_data_can_be_given_on_the_line(tmp_path, capsys):
    write_twin(tmp_path / "t.parquet", 600, features=12, eras=20, groups=3)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(small(tmp_path, trainer_params={"gpus": [1]})))
    cli.vae_notes_train(config=str(tmp_path / "c.yaml"), data=str(tmp_path / "t.parquet"), quiet=True)
    said = capsys.readouterr().out
    assert "Training Small" in said and "Trainable params" in said and "version_0" in said
    if not torch.cuda.is_available(): assert "no GPU here" in said


def test_mistakes_are_one_line(tmp_path, capsys):
    assert "which file?" in refused(capsys, cli.vae_notes_train, quiet=True)
    assert "did you mean 'numerai_vae.yaml'?" in refused(
        capsys, cli.vae_notes_train, config=str(ROOT / "configs/numeri_vae.yaml"))
    (tmp_path / "c.yaml").write_text("exp_params: {lr: 1}")
    assert "did you mean 'LR'?" in refused(capsys, cli.vae_notes_train, config=str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("latent, rows", [(1, 3), (2, 1), (3, 40)])
def test_pictures_of_any_size(latent, rows):
    import matplotlib.pyplot as plt
    model = TabularVAE(7, latent)
    x = torch.randint(0, 5, (rows, 7), dtype=torch.uint8)
    cli.plot_scores(model, x), cli.plot_latent(model, x)
    plt.close("all")


# --- rows in, rows out ---

def features_of(frame): return frame[[n for n in frame if n.startswith("feature")]]


def table(path, rows, seed=0, as_float=False, **columns):
    x = np.random.default_rng(seed).integers(0, 5, (rows, 12))
    frame = pd.DataFrame(x / 4. if as_float else x.astype(np.int8), columns=[f"feature_{j:04}" for j in range(12)])
    frame = frame.assign(id=[f"n{i}" for i in range(rows)], **columns)
    if Path(path).suffix == ".csv": frame.to_csv(path, index=False)
    else: frame.to_parquet(path)
    return frame


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 30])
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_as_many_rows_in_the_same_order_whatever_the_pieces(run, tmp_path, monkeypatch, rows, kind):
    data = tmp_path / f"in.{kind}"
    frame = table(data, rows)
    for command in ("score", "reconstruct", "denoise"):
        monkeypatch.setattr(cli, "_ROWS", 8)
        out = tmp_path / f"{command}.{kind}"
        getattr(cli, f"vae_notes_{command}")(str(run / "model.safetensors"), str(data), str(out))
        got = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
        assert got.id.tolist() == frame.id.tolist()
        monkeypatch.setattr(cli, "_ROWS", 2**14)
        whole = tmp_path / f"whole.{kind}"
        getattr(cli, f"vae_notes_{command}")(str(run / "model.safetensors"), str(data), str(whole))
        other = pd.read_csv(whole) if kind == "csv" else pd.read_parquet(whole)
        pd.testing.assert_frame_equal(got, other, rtol=1e-4, atol=1e-4)


def test_columns_are_those_of_the_model(run, tmp_path):
    data, model = tmp_path / "in.parquet", load(run / "model.safetensors")
    frame = table(data, 20)
    frame[frame.columns[::-1]].assign(other=1.5).to_parquet(data)  # another order, a column more
    cli.vae_notes_score(str(run / "model.safetensors"), str(data), str(tmp_path / "o.csv"), 5)
    got, x = pd.read_csv(tmp_path / "o.csv"), torch.from_numpy(features_of(frame).to_numpy().astype(np.uint8))
    assert set(got) == {"id", "other", "score", "kl", "mse"}
    torch.testing.assert_close(torch.tensor(got.score).float(), model.score(x, 5), rtol=1e-4, atol=1e-3)
    mean = model.reconstruct(x / 4)
    torch.testing.assert_close(torch.tensor(got.mse).float(), (mean - x / 4).square().mean(1), rtol=1e-4, atol=1e-5)
    q = model.encode(x / 4)
    kl = torch.distributions.kl_divergence(q.base_dist, torch.distributions.Normal(0., 1.)).sum(1)
    torch.testing.assert_close(torch.tensor(got.kl).float(), kl, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("as_float", [False, True])
def test_cleaning_keeps_the_form(run, tmp_path, as_float):
    data, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    frame, model = table(data, 25, as_float=as_float), load(run / "model.safetensors")
    cli.vae_notes_denoise(str(run / "model.safetensors"), str(data), str(out))
    got = pd.read_parquet(out)
    assert list(got) == list(frame)
    x = torch.tensor(features_of(frame).to_numpy()).float() / (1 if as_float else 4)
    expected = (model.reconstruct(x) * 4).round().clamp(0, 4)
    assert (features_of(got).to_numpy() * (4 if as_float else 1) == expected.numpy()).all()
    cli.vae_notes_reconstruct(str(run / "model.safetensors"), str(data), str(out))
    np.testing.assert_allclose(features_of(pd.read_parquet(out)), model.reconstruct(x), rtol=1e-4, atol=1e-5)


def test_gaps_are_the_middle_bin(run, tmp_path):
    frame = table(tmp_path / "a.csv", 10)
    for name, value in [("a", 2), ("b", None)]:
        column = frame.feature_0003.astype("Int8")
        column[4] = value
        frame.assign(feature_0003=column).to_csv(tmp_path / f"{name}.csv", index=False)
        cli.vae_notes_score(str(run / "model.safetensors"), str(tmp_path / f"{name}.csv"), str(tmp_path / f"s{name}.csv"))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "sa.csv"), pd.read_csv(tmp_path / "sb.csv"))


def test_a_failure_leaves_the_old_result(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_ROWS", 8)
    for kind in ("csv", "parquet"):
        data, out = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
        table(data, 30)
        args = str(run / "model.safetensors"), str(data), str(out)
        cli.vae_notes_denoise(*args)
        before, frame = out.read_bytes(), table(data, 30)
        frame.loc[29, "feature_0005"] = 7
        frame.to_csv(data, index=False) if kind == "csv" else frame.to_parquet(data)
        assert "'feature_0005': expected the 5 values 0…4, got 7" in refused(capsys, cli.vae_notes_denoise, *args)
        assert out.read_bytes() == before
    assert {p.suffix for p in tmp_path.iterdir()} == {".csv", ".parquet"}  # no parts


def test_what_is_refused(run, tmp_path, capsys):
    model, data, out = str(run / "model.safetensors"), str(tmp_path / "in.csv"), str(tmp_path / "out.csv")
    table(data, 5)
    score = cli.vae_notes_score
    assert "ends in .parquet or .csv" in refused(capsys, score, model, data, "out.txt")
    assert "did you mean 'in.csv'" in refused(capsys, score, model, str(tmp_path / "inn.csv"), out)
    assert "is the table that is read" in refused(capsys, score, model, data, data)
    assert "n_samples: expected ≥ 1" in refused(capsys, score, model, data, out, 0)
    assert "seed: expected" in refused(capsys, score, model, data, out, 1, -1)
    assert "No such file" in refused(capsys, score, str(tmp_path / "m"), data, out)
    table(data, 5, score=1.)
    assert "column 'score': is in the table already" in refused(capsys, score, model, data, out)
    table(data, 5).drop(columns="feature_0002").to_csv(data, index=False)
    assert "column 'feature_0002': not in the table" in refused(capsys, score, model, data, out)
    table(data, 5).assign(feature_0002="x").to_csv(data, index=False)
    assert "column 'feature_0002': expected numbers, got string" in refused(capsys, score, model, data, out)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    assert "cannot be read" in refused(capsys, score, model, str(tmp_path / "bad.parquet"), out)
    (tmp_path / "empty.csv").write_text("")
    assert "cannot be read" in refused(capsys, score, model, str(tmp_path / "empty.csv"), out)
    save(mlp([3, 2]), tmp_path / "mlp.safetensors")
    assert "expected a TabularVAE" in refused(capsys, score, str(tmp_path / "mlp.safetensors"), data, out)
    broken = bytearray(Path(model).read_bytes())
    broken[-3] ^= 1
    (tmp_path / "broken.safetensors").write_bytes(broken)
    assert "checksum" in refused(capsys, score, str(tmp_path / "broken.safetensors"), data, out)
    assert not Path(out).exists()


def test_made_rows(run, tmp_path, monkeypatch):
    model, frames = str(run / "bins.safetensors"), []
    for name, rows, seed in [("a.parquet", 50, 3), ("b.csv", 50, 3), ("c.csv", 50, 4)]:
        cli.vae_notes_generate(model, str(tmp_path / name), rows, seed)
        frames.append((pd.read_csv if name.endswith("csv") else pd.read_parquet)(tmp_path / name))
    a, b, c = frames
    assert a.shape == (50, 12) and (a.to_numpy() == b.to_numpy()).all() and not (b == c).all(axis=None)
    assert set(np.unique(a)) <= {0, 1, 2, 3, 4} and (a.dtypes == np.int8).all()
    monkeypatch.setattr(cli, "_ROWS", 16)
    cli.vae_notes_generate(model, str(tmp_path / "d.csv"), 50, 3)
    d = pd.read_csv(tmp_path / "d.csv")
    assert len(d) == 50 and len(d.drop_duplicates()) > 45  # every piece has noise of its own


@pytest.mark.parametrize("rows", [0, -1, 1.5])
def test_no_rows_to_make(run, tmp_path, capsys, rows):
    assert "rows: expected" in refused(capsys, cli.vae_notes_generate, str(run / "bins.safetensors"), str(tmp_path / "o.csv"), rows)


def test_a_model_saved_by_hand_has_the_usual_names(tmp_path):
    save(TabularVAE(12, 2), tmp_path / "m.safetensors")
    table(tmp_path / "in.csv", 4)
    cli.vae_notes_score(str(tmp_path / "m.safetensors"), str(tmp_path / "in.csv"), str(tmp_path / "o.parquet"))
    assert len(pd.read_parquet(tmp_path / "o.parquet")) == 4


# --- as commands ---

COMMANDS = ["train", "score", "reconstruct", "denoise", "generate"]


def test_both_files_name_all_commands():
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "settings.ini")
    nbdev = dict(line.split("=") for line in parsed["DEFAULT"]["console_scripts"].split("\n"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name in COMMANDS:
        assert nbdev[f"vae_notes_{name}"] == scripts[f"vae_notes_{name}"] == f"vae_notes.cli:vae_notes_{name}"
        assert callable(getattr(cli, f"vae_notes_{name}"))


@pytest.mark.parametrize("name", ["train", "generate"])
def test_help_has_an_example_and_every_option(tmp_path, name):
    script = tmp_path / f"vae_notes_{name}"
    script.write_text(f"import sys\nfrom vae_notes.cli import vae_notes_{name}\nsys.exit(vae_notes_{name}())\n")
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "78"}
    done = subprocess.run([sys.executable, script, "--help"], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and f"vae_notes_{name}" in done.stdout.partition("Example")[2]
    for option in ("--resume", "--config") if name == "train" else ("--rows", "--seed", "model", "out"):
        assert option in done.stdout
