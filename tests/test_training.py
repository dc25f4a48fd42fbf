"""The training loop where it is no lesson: odd input, odd surroundings."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vae_notes.files import FileFormatError
from vae_notes.training import (History, Trainer, TrainingDiverged, by_rows, cosine, evaluating, exponential,
                                fast_matmul_error, fit, seeded)

ROOT = Path(__file__).resolve().parent.parent
G = torch.Generator().manual_seed(0)
X = torch.randn(50, 3, generator=G)
Y = X.sum(1)


class Line(nn.Module):
    def __init__(self, dtype=None):
        super().__init__()
        self.linear = nn.Linear(3, 1, dtype=dtype)
        nn.init.constant_(self.linear.weight, .1)
        nn.init.constant_(self.linear.bias, 0)

    def loss(self, x, y): return (self.linear(x).squeeze(-1) - y).square().mean()


class Failing(Line):
    """BatchNorm before the line; the loss goes wrong in the given step."""
    def __init__(self, step, how):
        super().__init__()
        self.norm, self.step, self.how, self.n = nn.BatchNorm1d(3), step, how, 0

    def loss(self, x, y):
        self.n += self.training
        loss = super().loss(self.norm(x), y)
        if self.n == self.step and self.how == "inf loss": return loss + math_inf(loss)
        if self.n == self.step and self.how == "nan gradient": return loss + (self.linear.bias * 0).sqrt().sum()
        return loss


def math_inf(loss): return torch.full_like(loss, torch.inf)


def weights(model): return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- numbers that are not finite -------------------------------------------------------------------------------------

@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("how", ["inf loss", "nan gradient"])
def test_the_weights_are_those_before_the_bad_step(how, deferred):
    """Also where the device alone knows of it until the next look, as on a GPU."""
    good = Failing(0, how)
    one = fit(good, (X[:10], Y[:10]), epochs=3, batch_size=10)
    bad = Failing(4, how)  # the first step of epoch 4, on the same batches
    trainer = Trainer(bad, (X[:10], Y[:10]), epochs=9, batch_size=10)
    trainer._defer(deferred)
    with pytest.raises(TrainingDiverged, match="epoch 4, batch 1: the loss") as error: trainer.run()
    assert same(weights(good), weights(bad)) and len(one) == 3
    assert error.value.epoch == 4 and error.value.batch == 1
    assert list(error.value.parameters) == (["linear.bias"] if how == "nan gradient" else [])
    assert all(p.grad is None for p in bad.parameters())


def test_after_a_bad_step_no_weight_moves_until_someone_looks():
    results = []
    for deferred in (False, True):
        model = Failing(8, "inf loss")
        trainer = Trainer(model, (X, Y), epochs=9, batch_size=10)
        trainer._defer(deferred)
        with pytest.raises(TrainingDiverged, match="epoch 2, batch 3"): trainer.run()
        results.append((weights(model), model.n))
    assert same(results[0][0], results[1][0]) and [n for _, n in results] == [8, 10]


def test_a_deferred_run_equals_a_watched_one():
    a, b = Line(), Line()
    one, two = (Trainer(m, (X, Y), epochs=3, batch_size=7, clip=.5, ema=.9) for m in (a, b))
    two._defer(True)
    assert one.run()["loss"].tolist() == two.run()["loss"].tolist()
    assert same(weights(a), weights(b))
    assert not hasattr(two.optimizer, "found_inf")


def test_deferred_batches_are_counted_right():
    model = Failing(153, "nan gradient")
    trainer = Trainer(model, (X, Y), epochs=9, batch_size=1)
    model.norm.eval()
    trainer.model.train = lambda mode=True: model  # keeps BatchNorm from single rows
    trainer._defer(True)
    with pytest.raises(TrainingDiverged, match="epoch 4, batch 3:"): trainer.run()


def test_no_checkpoint_is_written_after_the_bad_step(tmp_path):
    good = Failing(0, "nan gradient")
    fit(good, (X[:10], Y[:10]), epochs=3, batch_size=10, folder=tmp_path / "good")
    with pytest.raises(TrainingDiverged):
        fit(Failing(4, "nan gradient"), (X[:10], Y[:10]), epochs=9, batch_size=10, folder=tmp_path / "bad",
            checkpoint_every=0)
    again = Failing(0, "")
    fit(again, (X[:10], Y[:10]), epochs=3, batch_size=10, folder=tmp_path / "bad", resume=True)
    assert same(weights(good), weights(again))


@pytest.mark.parametrize("factor", [float("nan"), -1., float("inf")])
def test_a_schedule_that_makes_no_sense(factor):
    with pytest.raises(ValueError, match="schedule: expected a factor ≥ 0"):
        fit(Line(), (X, Y), schedule=lambda t, total: factor)


# --- arguments ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wrong", [
    {"epochs": 0}, {"batch_size": 0}, {"lr": -1.}, {"lr": float("nan")}, {"clip": 0.}, {"kl_warmup": -1.},
    {"free_bits": float("inf")}, {"patience": 0}, {"ema": 1.}, {"checkpoint_every": -1.}, {"precision": "float16"},
    {"seed": -1}, {"resume": True}, {"tensorboard": True}, {"patience": 2}])
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: "): fit(Line(), (X, Y), **wrong)


@pytest.mark.parametrize("wrong", [
    {"epochs": 1.}, {"epochs": True}, {"batch_size": "8"}, {"lr": "1e-3"}, {"precision": None}, {"seed": .5},
    {"optimizer": lambda model: 3}])
def test_values_of_the_wrong_kind_are_named(wrong):
    with pytest.raises(TypeError, match=f"^{next(iter(wrong))}: "): fit(Line(), (X, Y), **wrong)


def test_unknown_arguments():
    with pytest.raises(TypeError, match="learning_rate"): fit(Line(), (X, Y), learning_rate=1)


def test_models_that_cannot_be_trained():
    with pytest.raises(TypeError, match="expected a torch.nn.Module, got function"): fit(lambda x: x, X)
    with pytest.raises(TypeError, match="Identity has neither"): fit(nn.Identity(), X)
    frozen = Line().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"): fit(frozen, (X, Y))
    with pytest.raises(ValueError, match="optimizer: holds parameters that are not the model's"):
        fit(Line(), (X, Y), optimizer=lambda m: torch.optim.SGD(Line().parameters(), lr=1))


@pytest.mark.parametrize("returned, error", [
    (lambda loss: {"rate": loss}, TypeError), (lambda loss: loss, TypeError),
    (lambda loss: {"loss": loss.detach()}, ValueError), (lambda loss: {"loss": loss, "rate": 3.}, ValueError),
    (lambda loss: {"loss": loss, "rate": torch.ones(2)}, ValueError)])
def test_terms_of_the_wrong_form(returned, error):
    class Model(Line):
        def terms(self, x, y): return returned(self.loss(x, y))
    with pytest.raises(error): fit(Model(), (X, Y))


# --- data ---------------------------------------------------------------------------------------------------------------

def bad(x):
    x = x.copy() if isinstance(x, np.ndarray) else x.clone()
    x[7, 1] = float("nan")
    return x


@pytest.mark.parametrize("data, error, message", [
    ((X, Y[:-1]), ValueError, r"data\[1\]: expected 50 rows"), ((X[:0], Y[:0]), ValueError, r"data\[0\]: .* one row"),
    (torch.ones(()), ValueError, "at least one row"), ((), TypeError, "data: expected"), (3, TypeError, "data: exp"),
    ("text", TypeError, "data: expected"), ({"x": X}, TypeError, "data: expected"), ([], ValueError, "no batch"),
    ((X, [1.] * 50), TypeError, r"data\[1\]: expected a tensor"), ((bad(X), Y), ValueError, r"data\[0\]: .*\(7, 1\)"),
    ((bad(X.numpy()), Y), ValueError, r"data\[0\]: .*\(7, 1\)"), ([(X, Y), (bad(X), Y)], ValueError, "data, batch 2: "),
    (np.array(["a", "b"]), TypeError, "data: expected numbers"), ([(X, Y[:3])], ValueError, "data, batch 1: "),
    (iter([(X, Y)]), TypeError, "iterator"), (torch.utils.data.TensorDataset(X, Y), TypeError, "DataLoader"),
    ([("a", "b")], TypeError, "data, batch 1: expected a tensor")])
def test_data_that_cannot_be_used(data, error, message):
    model = Line()
    with pytest.raises(error, match=message): fit(model, data, epochs=2)
    assert torch.isfinite(model.linear.weight).all()


def test_frames_are_sent_to_their_arrays():
    import pandas as pd
    frame = pd.DataFrame(X.numpy())
    for wrong in (frame, (frame, Y), frame[0]):
        with pytest.raises(TypeError, match="data"): fit(Line(), wrong)
    fit(Line(), (frame.to_numpy(), Y), epochs=1)


def run(data, **options):
    model = Line()
    history = fit(model, data, epochs=3, batch_size=8, **options)
    return weights(model), history["loss"].tolist()


def equal(a, b): return same(a[0], b[0]) and a[1] == b[1]


def test_all_homes_of_the_same_rows_train_to_the_same_bits(tmp_path):
    expected = run((X, Y))
    np.save(tmp_path / "x.npy", X.numpy())
    np.save(tmp_path / "y.npy", Y.double().numpy().astype(">f8"))  # the other byte order, double
    x, y = (np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in "xy")
    frozen = X.numpy().copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for home in [(X.numpy(), Y.numpy()), (x, y), (x, Y), (X.double(), Y), (frozen, Y),
                     (X.numpy()[::-1][::-1], np.asfortranarray(Y))]:
            assert equal(run(home), expected)


def test_rows_on_disk_are_searched_as_they_are_read(tmp_path):
    np.save(tmp_path / "x.npy", bad(X.numpy()))
    with pytest.raises(ValueError, match=r"data\[0\]: expected finite numbers, got NaN or infinity in row 7"):
        fit(Line(), (np.load(tmp_path / "x.npy", mmap_mode="r"), Y))


def test_whole_numbers_keep_their_type():
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 1)
        def loss(self, index, small, flag):
            assert index.dtype == torch.int64 and small.dtype == torch.uint8 and flag.dtype == torch.bool
            return self.table(index).square().mean()
    index = torch.arange(20) % 5
    history = fit(Lookup(), (index, index.to(torch.uint8), index > 2), epochs=2, batch_size=8)
    assert history["loss"][1] < history["loss"][0]


def test_a_data_loader_and_a_stream():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8, shuffle=True)
    assert equal(run(loader), run(loader))
    class Stream:
        def __iter__(self):
            for _ in range(4): yield torch.randn(5, 3), np.random.rand(5)
    assert equal(run(Stream()), run(Stream()))
    assert run(Stream(), seed=1)[1] != run(Stream())[1]


def test_averages_weigh_by_rows():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))
        def loss(self, x): return x.mean() + 0 * self.w
    history = fit(Constant(), torch.arange(10.), batch_size=4, epochs=1, valid=torch.arange(7.))
    assert history["loss"][0] == 4.5 and history["valid_loss"][0] == 3


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_a_run_is_resumed_in_the_middle_of_an_epoch(tmp_path, kind):
    class Stream:
        def __iter__(self):
            for _ in range(7): yield torch.randn(5, 3), torch.rand(5)
    class Stopping(Line):
        n = 0
        def loss(self, x, y):
            self.n += 1
            if self.n == 10: signal.raise_signal(signal.SIGINT)
            return super().loss(x, y) + torch.randn(()) * self.linear.bias.sum()
    data = (X, Y) if kind == "rows" else Stream()
    whole, stopped, again = Stopping(), Stopping(), Stopping()
    whole.n = again.n = 100
    options = dict(epochs=3, batch_size=8, schedule=cosine(.5), clip=1.)
    one = fit(whole, data, **options)
    two = fit(stopped, data, folder=tmp_path, **options)
    assert len(two) == 1
    three = fit(again, data, folder=tmp_path, resume=True, **options)
    assert same(weights(whole), weights(again))
    assert one["loss"].tolist() == three["loss"].tolist() and one["lr"].tolist() == three["lr"].tolist()


# --- surroundings -------------------------------------------------------------------------------------------------------

def surroundings(model):
    return (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(),
            torch.get_float32_matmul_precision(), signal.getsignal(signal.SIGINT), [m.training for m in model.modules()])


@pytest.mark.parametrize("ends", ["well", "badly"])
@pytest.mark.parametrize("precision", ["float32", "exact", "bfloat16"])
def test_everything_is_put_back(ends, precision):
    model = Failing(3 if ends == "badly" else 0, "nan gradient")
    model.norm.eval()
    before = surroundings(model)
    many = 2**21  # rows a step: so many that the fast products would pay
    try: fit(model, (X, Y), epochs=5, batch_size=many, precision=precision, valid=(X, Y))
    except TrainingDiverged: assert ends == "badly"
    assert surroundings(model) == before


def test_ctrl_c_in_another_thread_is_left_alone():
    result = []
    thread = threading.Thread(target=lambda: result.append(fit(Line(), (X, Y), epochs=1)))
    thread.start()
    thread.join()
    assert len(result[0]) == 1


def test_a_second_ctrl_c_interrupts_at_once():
    class Hasty(Line):
        def loss(self, x, y):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): fit(Hasty(), (X, Y))


def test_a_first_ctrl_c_keeps_what_there_is(tmp_path, capfd):
    class Once(Line):
        def loss(self, x, y):
            if not hasattr(self, "done"): signal.raise_signal(signal.SIGINT)
            self.done = True
            return super().loss(x, y)
    history = fit(Once(), (X, Y), epochs=3, folder=tmp_path)
    assert len(history) == 0 and repr(history) == "History of no epoch yet"
    assert "interrupted in epoch 1 after 1 steps; resume=True goes on" in capfd.readouterr().err
    assert len(fit(Line(), (X, Y), epochs=3, folder=tmp_path, resume=True)) == 3


def test_longer_but_never_shorter_or_other(tmp_path):
    fit(Line(), (X, Y), epochs=2, folder=tmp_path)
    again = Line()
    assert len(fit(again, (X, Y), epochs=5, folder=tmp_path, resume=True)) == 5
    whole = Line()
    fit(whole, (X, Y), epochs=5)
    assert same(weights(whole), weights(again))
    resumed = Line()
    fit(resumed, (X, Y), epochs=5, folder=tmp_path, resume=True)  # nothing left to do
    assert same(weights(whole), weights(resumed))
    for wrong, name in [(dict(batch_size=7), "batch_size"), (dict(seed=1), "seed"),
                        (dict(optimizer=torch.optim.SGD), "optimizer"), (dict(schedule=cosine()), "schedule"),
                        (dict(valid=(X, Y)), "valid"), (dict(clip=1.), "clip")]:
        with pytest.raises(ValueError, match=f"another run: {name}"):
            fit(Line(), (X, Y), **{"epochs": 6, "folder": tmp_path, "resume": True} | wrong)
    with pytest.raises(ValueError, match="data was"): fit(Line(), (X + 1, Y), epochs=6, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="linear.weight was"):
        fit(Wide(), (X, Y), epochs=6, folder=tmp_path, resume=True)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
    def loss(self, x, y): return self.linear(x).square().mean()


def test_a_checkpoint_cut_short_is_refused(tmp_path):
    fit(Line(), (X, Y), epochs=1, folder=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FileFormatError): fit(Line(), (X, Y), epochs=2, folder=tmp_path, resume=True)


def test_early_stopping_stays_stopped(tmp_path):
    options = dict(epochs=200, batch_size=8, lr=.3, valid=(X, -Y), patience=2, folder=tmp_path)
    first, model = fit(Line(), (X, Y), **options), Line()
    second = fit(model, (X, Y), resume=True, **options)
    assert len(first) == len(second) < 200
    with evaluating(model): assert abs(model.loss(X, -Y).item() - first["valid_loss"].min()) < 1e-5


def test_tensorboard(tmp_path, monkeypatch):
    lines = []
    class SummaryWriter:
        def __init__(self, folder): self.folder = folder
        def add_scalar(self, *line): lines.append(line)
        def __enter__(self): return self
        def __exit__(self, *_): lines.append("closed")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        fit(Line(), (X, Y), epochs=1, folder=tmp_path / "a", tensorboard=True)
    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    history = fit(Line(), (X, Y), epochs=2, folder=tmp_path / "b", tensorboard=True)
    assert ("loss", history["loss"][1], 2) in lines and lines[-1] == "closed"


def test_the_bar(capfd):
    fit(Line(), (X, Y), epochs=2, batch_size=25, progress=True)
    shown = capfd.readouterr().err
    assert "4/4" in shown and "epoch 2/2 loss" in shown.replace(",", "")
    fit(Line(), (X, Y), epochs=2)
    assert capfd.readouterr().err == ""  # nobody looks


def test_half_precision_and_exactness():
    exact, fast, half = (run((X, Y), precision=p)[1] for p in ("exact", "float32", "bfloat16"))
    assert np.allclose(exact, fast, rtol=1e-5)
    assert np.allclose(exact, half, rtol=.05) and exact != half


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_compiled_models_train_alike():
    """Once for all batch sizes and KL weights: no storm of compilations."""
    class Model(Line):
        def terms(self, x, y, kl_weight=1.):
            loss = self.loss(x, y)
            return {"loss": loss + kl_weight * self.linear.weight.square().sum(), "error": loss}
    histories = []
    for compiled in (False, True):
        torch._dynamo.reset()
        histories.append(fit(Model(), (X, Y), epochs=4, batch_size=8, kl_warmup=3, compile=compiled))
    assert np.allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)


def test_double_models_get_doubles():
    model = Line(dtype=torch.float64)
    assert fit(model, (X, Y), epochs=1).rows and model.linear.weight.dtype == torch.float64


def test_groups_keep_their_own_rates():
    def groups(model):
        return torch.optim.SGD([{"params": [model.linear.weight], "lr": .01},
                                {"params": [model.linear.bias], "lr": 0.}], lr=1)
    model = Line()
    trainer = Trainer(model, (X, Y), epochs=2, optimizer=groups, schedule=exponential(.5))
    trainer.run()
    assert [g["lr"] for g in trainer.optimizer.param_groups] == [.005, 0.]
    assert model.linear.bias.item() == 0 and model.linear.weight[0, 0] != .1


def test_momentum_and_other_optimizers_resume(tmp_path):
    def momentum(model): return torch.optim.SGD(model.parameters(), lr=.01, momentum=.9)
    for name, optimizer in {"sgd": momentum, "rms": torch.optim.RMSprop, "adamw": torch.optim.AdamW}.items():
        whole, again = Line(), Line()
        fit(whole, (X, Y), epochs=4, optimizer=optimizer)
        fit(Line(), (X, Y), epochs=2, optimizer=optimizer, folder=tmp_path / name)
        fit(again, (X, Y), epochs=4, optimizer=optimizer, folder=tmp_path / name, resume=True)
        assert same(weights(whole), weights(again))


def test_kl_weight_and_patience_wait_for_the_warm_up():
    class Model(Line):
        seen = []
        def terms(self, x, y, kl_weight=1.):
            self.seen.append((self.training, float(kl_weight)))
            loss = self.loss(x, y)
            return {"loss": loss + kl_weight * 10, "distortion": loss}
    history = fit(Model(), (X, Y), epochs=9, batch_size=25, valid=(X, Y), kl_warmup=4, patience=1)
    training = [w for training, w in Model.seen if training]
    assert training[:8] == pytest.approx([1 / 16, 3 / 16, 5 / 16, 7 / 16, 9 / 16, 11 / 16, 13 / 16, 15 / 16])
    assert len(history) > 4 and history["kl_weight"][:5].tolist() == [.25, .5, .75, 1, 1]


# --- the rest -----------------------------------------------------------------------------------------------------------

def test_by_rows_gives_what_it_got():
    for n in (1, 2, 49, 50):
        for size in (1, 7, 50, 1000, None):
            assert torch.equal(by_rows(lambda x: 2 * x, X[:n], batch_size=size), 2 * X[:n])
    sizes = []
    by_rows(lambda x: sizes.append(len(x)) or x[:, 0], torch.zeros(5000, 1000))
    assert max(sizes) * 1000 <= 2**22 and sum(sizes) == 5000
    with pytest.raises(ValueError, match="equally many rows"): by_rows(lambda x, y: x, X, Y[:3])


def test_history():
    h = History([{"epoch": 1, "loss": 2., "valid_loss": 3.}])
    assert h.frame.loc[1, "loss"] == 2 and h["valid_loss"].tolist() == [3.] and h[0]["epoch"] == 1
    assert "<table" in h._repr_html_()
    with pytest.raises(ValueError, match="no epoch"): History().plot()


def test_seeded_puts_back_after_an_error():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(1): torch.rand(3); 1 / 0
    assert torch.equal(before, torch.get_rng_state())


def test_two_fresh_processes_agree_to_the_bit():
    code = ("import sys; sys.path.insert(0, 'tests'); from test_training import *\n"
            "m = Failing(0, ''); fit(m, (X, Y), epochs=3, batch_size=8)\n"
            "print([v.double().flatten().tolist() for v in m.state_dict().values()])")
    outputs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONHASHSEED": str(i)}).stdout for i in range(2)]
    assert outputs[0] == outputs[1] and len(outputs[0]) > 50


def test_the_import_is_light():
    code = "import sys; from vae_notes.training import fit; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"pandas", "matplotlib", "tensorboard", "IPython", "torch._dynamo"} & set(loaded.split())


def test_any_array_that_reads_rows_in_order():
    """As HDF5 files do, which take ascending row numbers only."""
    class OnDisk:
        shape, dtype = X.shape, np.dtype("float32")
        def __len__(self): return len(X)
        def __getitem__(self, rows):
            assert (np.diff(rows) > 0).all()
            return X.numpy()[rows]
    assert equal(run((OnDisk(), Y)), run((X, Y)))


class Sampling(Line):
    """Draws in training and in validation."""
    def loss(self, x, y):
        noise = torch.rand(()) * np.random.rand() * random.random()
        return super().loss(x + torch.randn_like(x), y) + noise


def test_validation_has_its_own_noise_always_the_same():
    history = fit(Sampling(), (X, Y), epochs=4, batch_size=8, optimizer=torch.optim.SGD, lr=1e-30, valid=(X, Y))
    assert len(set(history["valid_loss"])) == 1 and len(set(history["loss"])) == 4
    other = fit(Sampling(), (X, Y), epochs=1, seed=1, optimizer=torch.optim.SGD, lr=1e-30, valid=(X, Y))
    assert other["valid_loss"][0] != history["valid_loss"][0]


def test_watching_changes_nothing(tmp_path):
    plain, watched, listed = Sampling(), Sampling(), Sampling()
    fit(plain, (X, Y), epochs=3, batch_size=8, ema=.9)
    fit(watched, (X, Y), epochs=3, batch_size=8, ema=.9, valid=(X, Y), folder=tmp_path, checkpoint_every=0, progress=True)
    assert same(weights(plain), weights(watched))
    trainer = Trainer(listed, (X, Y), epochs=3, batch_size=8, ema=.9)
    with seeded(7): trainer.run()
    assert same(weights(plain), weights(listed))


def test_the_seed_decides_order_and_noise():
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(runs))
        runs.append(fit(Sampling(), (X, Y), epochs=2, batch_size=8, seed=seed)["loss"].tolist())
    assert runs[0] == runs[1] != runs[2]


def test_the_history_as_a_table_of_text(tmp_path):
    history = fit(Line(), (X, Y), epochs=3, folder=tmp_path, valid=(X, Y))
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,valid_loss,lr,grad_norm,seconds"
    assert [float(line.split(",")[1]) for line in lines[1:]] == history["loss"].tolist()


def test_weights_that_are_averaged_are_the_ones_validated():
    model = Line()
    history = fit(model, (X, Y), epochs=2, batch_size=8, lr=.1, ema=.9, valid=(X, Y))
    with evaluating(model): assert model.loss(X, Y).item() == pytest.approx(history["valid_loss"][-1], rel=1e-5)


def test_a_stream_of_unknown_length_is_measured_in_its_first_epoch():
    class Stream:
        def __iter__(self): return iter([(X, Y)] * 4)
    times = []
    fit(Line(), Stream(), epochs=3, schedule=lambda t, total: times.append(t) or 1.)
    assert times == [.5] * 4 + [1.125, 1.375, 1.625, 1.875, 2.125, 2.375, 2.625, 2.875]


def test_what_a_stream_draws_is_no_business_of_the_model():
    class Greedy:
        def __iter__(self):
            for i in range(0, 50, 10):
                torch.rand(i + 1), np.random.rand(3), random.random()
                yield X[i:i + 10], Y[i:i + 10]
    quiet, greedy = Sampling(), Sampling()
    fit(quiet, [(X[i:i + 10], Y[i:i + 10]) for i in range(0, 50, 10)], epochs=2)
    fit(greedy, Greedy(), epochs=2)
    assert same(weights(quiet), weights(greedy))


def test_fast_products_where_they_pay():
    class Spy(Line):
        def loss(self, x, y):
            self.seen = torch.get_float32_matmul_precision()
            return super().loss(x, y)
    fast = "medium" if fast_matmul_error() < 1e-5 else "highest"
    for rows, precision, expected in [(128, "float32", "highest"), (2**21, "float32", fast), (2**21, "exact", "highest")]:
        model = Spy()
        fit(model, (X, Y), epochs=1, batch_size=rows, precision=precision)
        assert model.seen == expected


def test_validation_is_as_precise_as_training():
    losses = [fit(Line(), (X, Y), epochs=1, lr=1e-30, valid=(X, Y), batch_size=50, precision=p)[0]
              for p in ("exact", "bfloat16")]
    assert losses[0]["valid_loss"] != losses[1]["valid_loss"]
    assert all(row["loss"] == pytest.approx(row["valid_loss"], rel=1e-5) for row in losses)
