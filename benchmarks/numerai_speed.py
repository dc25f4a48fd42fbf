"""The VAE of the notes, 1191 features at batch 4096: `fit` beside Lightning and a plain loop.

    pip install lightning            (left out of the table where it is missing)
    python benchmarks/numerai_speed.py [--threads 2] [--rounds 7] [--clock wall] [--save]

All train the same 83,061 parameters with the notes' settings from the same
weights. They take turns in one process; only ratios of one run count. Where
other programs hold the cores, use `--threads 1 --clock cpu`. `--save` writes
results/tabular_speed.json and results/tabular_speed_quality.json."""

import argparse
import logging
import statistics
import time
import warnings
from functools import partial
from importlib.util import find_spec

import torch
from machine import describe
from timing import CLOCKS, interleave
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from vae_notes.evaluation import save_result
from vae_notes.tabular_data import Twin
from vae_notes.tabular_vae import TabularVAE
from vae_notes.training import evaluating, exponential, fit

FEATURES, LATENT, BATCH, LR, GAMMA, WEIGHT = 1191, 32, 4096, .005, .95, .00025


class Plain(nn.Module):
    """The notes' network and loss, as they are usually written."""
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, LATENT), nn.BatchNorm1d(LATENT), nn.LeakyReLU())
        self.mu, self.logvar = nn.Linear(LATENT, LATENT), nn.Linear(LATENT, LATENT)
        self.first = nn.Linear(LATENT, LATENT)
        self.decoder = nn.Sequential(nn.Linear(LATENT, FEATURES), nn.BatchNorm1d(FEATURES), nn.LeakyReLU())

    def parts(self, x):
        h = self.encoder(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(.5 * logvar)
        mse = F.mse_loss(self.decoder(self.first(z)), x)
        rate = torch.mean(-.5 * torch.sum(1 + logvar - mu**2 - logvar.exp(), dim=1), dim=0)
        return mse + WEIGHT * rate, mse, rate


def start(model, seed):
    """The first weights of a `Plain`, in a `Plain` or a `TabularVAE`."""
    torch.manual_seed(seed)
    first = Plain()
    if isinstance(model, Plain): model.load_state_dict(first.state_dict()); return model
    pairs = [(model.encoder.first, first.encoder[0]), (model.encoder.norm, first.encoder[1]), (model.encoder.mu, first.mu),
             (model.encoder.logvar, first.logvar), (model.decoder.first, first.first),
             (model.decoder.last, first.decoder[0]), (model.decoder.norm, first.decoder[1])]
    for ours, theirs in pairs: ours.load_state_dict(theirs.state_dict())
    return model


def loop(x, epochs, seed=0):
    """A DataLoader and the steps of most scripts."""
    model = start(Plain(), seed)
    adam = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, GAMMA)
    for _ in range(epochs):
        for (batch,) in DataLoader(TensorDataset(x), BATCH, shuffle=True):
            adam.zero_grad()
            loss, mse, rate = model.parts(batch)
            loss.backward()
            adam.step()
            {"loss": loss.item(), "mse": mse.item(), "rate": rate.item()}
        schedule.step()
    return model


def lightning(x, epochs, seed=0):
    """As the notes' program drives it, without logger, bar and checkpoints."""
    import lightning.pytorch as pl
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"): logging.getLogger(name).setLevel(logging.ERROR)

    class Experiment(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = start(Plain(), seed)

        def training_step(self, batch, number):
            loss, mse, rate = self.model.parts(batch[0])
            self.log_dict({"loss": loss.item(), "mse": mse.item(), "rate": rate.item()})
            return loss

        def configure_optimizers(self):
            adam = torch.optim.Adam(self.parameters(), lr=LR)
            return [adam], [torch.optim.lr_scheduler.ExponentialLR(adam, GAMMA)]

    experiment = Experiment()
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    pl.Trainer(max_epochs=epochs, accelerator="cpu", **quiet).fit(experiment, DataLoader(TensorDataset(x), BATCH, shuffle=True))
    return experiment.model


def ours(x, epochs, seed=0, folded=True, **settings):
    model = start(TabularVAE(folded=folded), seed)
    fit(model, x, epochs=epochs, batch_size=BATCH, lr=LR, schedule=exponential(GAMMA), seed=seed, progress=False,
        device="cpu", **settings)
    return model


def held_out(model, x):
    """MSE + w·KL on unseen rows at z = μ, for a `Plain` and for ours."""
    x = x / 4
    with evaluating(model):
        if isinstance(model, Plain):
            h = model.encoder(x)
            mu, logvar = model.mu(h), model.logvar(h)
            rebuilt = model.decoder(model.first(mu))
        else:
            mu, logvar = model.encoder(x)
            rebuilt = model.decoder(mu)
        rate = .5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
        return ((rebuilt - x).square().mean(1) + WEIGHT * rate).numpy()


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time; use it with --threads 1")
    args.add_argument("--rounds", type=int, default=7)
    args.add_argument("--batches", type=int, default=8, help="of 4096 rows, in an epoch")
    args.add_argument("--epochs", type=int, default=2, help="timed, a round")
    args.add_argument("--quality", type=int, default=20, help="epochs for the comparison of losses; 0: none")
    args.add_argument("--save", action="store_true")
    args = args.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    rows = BATCH * args.batches
    codes = torch.randint(0, 5, (rows, FEATURES), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = codes / 4
    ways = {
        "Lightning and DataLoader": (lightning, values),
        "plain loop and DataLoader": (loop, values),
        "fit, not folded": (partial(ours, folded=False), codes),
        "fit, not folded, bfloat16": (partial(ours, folded=False, precision="bfloat16"), codes),
        "fit": (ours, codes),
        "fit, exact products": (partial(ours, precision="exact"), codes),
        "fit, bfloat16": (partial(ours, precision="bfloat16"), codes),
    }
    base = "Lightning and DataLoader"
    if find_spec("lightning") is None:
        print("Lightning is not installed: the plain loop stands in for it\n")
        ways.pop(base)
        base = "plain loop and DataLoader"
    steps = args.epochs * args.batches
    print(describe("cpu"))
    print(f"{steps} steps of {BATCH} rows, {args.rounds} rounds of {args.clock} time, {args.threads} threads\n", flush=True)
    seconds = interleave({name: partial(way, data, args.epochs) for name, (way, data) in ways.items()},
                         args.rounds, clock=args.clock)
    for name, times in seconds.items():
        ratios = [b / t for b, t in zip(seconds[base], times)]
        print(f"{name:28} {1000 * statistics.median(times) / steps:7.1f} ms a step   {statistics.median(ratios):5.2f} × "
              f"the steps of {base}   ({min(ratios):.2f}–{max(ratios):.2f})", flush=True)
    if args.save:
        scores = {name: [b / t for b, t in zip(seconds[base], times)] for name, times in seconds.items()}
        save_result("tabular_speed", scores, metric=f"steps, as a multiple of {base}", higher_is_better=True,
                    model="fit, bfloat16", units=[f"round {i + 1}" for i in range(args.rounds)], seeds=[0],
                    config=vars(args) | {"machine": describe("cpu")}, seconds=round(time.perf_counter() - began),
                    command="python benchmarks/numerai_speed.py --save", folder="results")
    if args.quality: quality(ways, args)


def quality(ways, args) -> None:
    """Loss on eras never trained on, after equally many steps on the twin."""
    began = time.perf_counter()
    twin = Twin(rows=24_000, eras=40, seed=3)
    made = [torch.from_numpy(twin.era(e).codes) for e in range(40)]
    train, tests, seeds = torch.cat(made[:28]), made[32:], [1, 2, 3]
    scores = {}
    for name, (way, data) in ways.items():
        x = train / 4 if data.is_floating_point() else train
        models = [way(x, args.quality, seed) for seed in seeds]
        scores[name] = [[float(held_out(m, t).mean()) for t in tests] for m in models]
        means = [statistics.mean(s) for s in scores[name]]
        print(f"{name:28} {statistics.mean(means):.5f} ± {statistics.stdev(means):.5f}", flush=True)
    if args.save:
        save_result("tabular_speed_quality", scores, metric="MSE + w·KL on later eras", higher_is_better=False,
                    model="fit, bfloat16", units=[f"era {e + 1}" for e in range(32, 40)], seeds=seeds,
                    config=vars(args), data=train, seconds=round(time.perf_counter() - began),
                    command="python benchmarks/numerai_speed.py --save", folder="results")


if __name__ == "__main__": main()
