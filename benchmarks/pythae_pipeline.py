"""`fit` beside pythae's TrainingPipeline, on pythae's own default VAE.

    pip install pythae
    python benchmarks/pythae_pipeline.py [--threads 2] [--rounds 7] [--device cpu]

Both train 784-512-16 with a sigmoid output and half the squared error, at
batch 128, from the same weights, on the same rows. They take turns in one
process. Beside them: a bare loop with all that is known to be fast, and the
plain loop with a DataLoader that most scripts have."""

import argparse
import copy
import logging
import statistics
import tempfile
from functools import partial

import torch
from machine import describe
from timing import CLOCKS, interleave, report
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from vae_notes.core import load_digits
from vae_notes.likelihoods import GaussianLikelihood
from vae_notes.training import fit
from vae_notes.vae import VAE, MLPDecoder, MLPEncoder

BATCH, LR, LATENT, HIDDEN = 128, 1e-3, 16, 512


def images(n: int, seed: int) -> torch.Tensor:
    """Grey digits at 28 × 28, shifted by up to three pixels: (n, 784)."""
    g = torch.Generator().manual_seed(seed)
    small = load_digits(binary=False)[0].view(-1, 1, 8, 8)
    large = F.pad(F.interpolate(small, size=(22, 22), mode="bilinear"), [6] * 4)
    rows, shifts = torch.randint(len(large), (n,), generator=g), torch.randint(7, (n, 2), generator=g)
    return torch.stack([large[r, 0, i:i + 28, j:j + 28].flatten() for r, (i, j) in zip(rows, shifts.tolist())])



class Plain(nn.Module):
    """The same network without any of the package's parts."""
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784), nn.Sigmoid())

    def terms(self, x):
        mu, logvar = self.encoder(x).chunk(2, -1)
        recon = self.decoder(mu + torch.randn_like(mu) * (.5 * logvar).exp())
        distortion = .5 * F.mse_loss(recon, x, reduction="sum") / len(x)
        rate = .5 * (mu.square() + logvar.exp() - 1 - logvar).sum() / len(x)
        return {"loss": distortion + rate, "distortion": distortion, "rate": rate}


def package_vae():
    decoder = MLPDecoder(LATENT, 784, (HIDDEN,))
    decoder.layers.append(nn.Sigmoid())
    return VAE(MLPEncoder(784, LATENT, (HIDDEN,)), decoder, likelihood=GaussianLikelihood())


def pythae_vae():
    from pythae.models import VAE as Theirs
    from pythae.models import VAEConfig
    return Theirs(VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT))


def weights(model) -> list[torch.Tensor]:
    """The model's weights in the order of a `Plain`'s; pythae has the last
    encoder layer in two halves."""
    found = [p.data for p in model.parameters()]
    if len(found) == 8: return found
    names = dict(model.named_parameters())
    heads = [torch.cat([names[f"encoder.{h}.{kind}"].data for h in ("embedding", "log_var")])
             for kind in ("weight", "bias")]
    layers = [names[n].data for n in ("encoder.layers.0.0.weight", "encoder.layers.0.0.bias")]
    return layers + heads + [names[f"decoder.layers.{i}.0.{kind}"].data for i in (0, 1) for kind in ("weight", "bias")]


def start(model, seed: int, device):
    """The same first weights for every model: those of a `Plain`."""
    torch.manual_seed(seed)
    first = [p.data for p in Plain().parameters()]
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in first)
    if len(list(model.parameters())) == 8:
        for p, value in zip(model.parameters(), first): p.data.copy_(value)
    else:
        names = dict(model.named_parameters())
        for i, kind in enumerate(("weight", "bias")):
            names[f"encoder.layers.0.0.{kind}"].data.copy_(first[i])
            for head, half in zip(("embedding", "log_var"), first[2 + i].chunk(2)):
                names[f"encoder.{head}.{kind}"].data.copy_(half)
            for layer in (0, 1): names[f"decoder.layers.{layer}.0.{kind}"].data.copy_(first[4 + 2 * layer + i])
    for ours, theirs in zip(weights(model), first): assert torch.equal(ours, theirs)
    return model.to(device)


def quiet():
    """pythae logs and draws a bar: neither is what we time."""
    from pythae.trainers import training_callbacks
    logging.disable(logging.CRITICAL)
    training_callbacks.tqdm = partial(training_callbacks.tqdm, disable=True)


def pythae(model, x, epochs, device, seed=0, fast=False):
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    before = torch.get_float32_matmul_precision()
    if fast: torch.set_float32_matmul_precision("medium")
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(output_dir=folder, num_epochs=epochs, learning_rate=LR, no_cuda=device == "cpu",
                                   per_device_train_batch_size=BATCH, seed=seed)
        TrainingPipeline(model=model, training_config=config)(train_data=x.view(-1, 1, 28, 28))
    torch.set_float32_matmul_precision(before)


def ours(model, x, epochs, device, seed=0, **options):
    fit(model, x, epochs=epochs, batch_size=BATCH, lr=LR, device=device, seed=seed, progress=False, **options)


def safe(model, x, epochs, device, seed=0):
    with tempfile.TemporaryDirectory() as folder: ours(model, x, epochs, device, seed, folder=folder)


def bare(model, x, epochs, device, seed=0):
    """One shuffled order an epoch, rows gathered into a reused buffer, fused
    Adam, the fast way to multiply, the loss added up on tensors."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(seed)
    x = x.to(device)
    adam = torch.optim.Adam(model.parameters(), LR, fused=True)
    buffer = x.new_empty(BATCH, 784)
    for _ in range(epochs):
        order, total = torch.randperm(len(x)).to(device), torch.zeros((), device=device)
        for rows in order.split(BATCH):
            batch = torch.index_select(x, 0, rows, out=buffer[:len(rows)])
            loss = model.terms(batch)["loss"]
            loss.backward()
            adam.step()
            adam.zero_grad()
            total += loss.detach() * len(rows)
        total.item()
    torch.set_float32_matmul_precision(before)


def common(model, x, epochs, device, seed=0):
    """The loop of most scripts."""
    torch.manual_seed(seed)
    adam = torch.optim.Adam(model.parameters(), LR)
    loader = DataLoader(TensorDataset(x), BATCH, shuffle=True)
    for _ in range(epochs):
        total = 0.
        for (batch,) in loader:
            adam.zero_grad()
            loss = model.terms(batch.to(device))["loss"]
            loss.backward()
            adam.step()
            total += loss.item()


@torch.no_grad()
def held_out(model, x, draws: int = 5) -> float:
    """Loss on rows never trained on, of the weights in a `Plain`, so that
    all are scored by the same code with the same noise."""
    judge = Plain()
    for p, value in zip(judge.parameters(), weights(model)): p.copy_(value.cpu())
    torch.manual_seed(123)
    return statistics.mean(judge.terms(x)["loss"].item() for _ in range(draws))


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time; use it with --threads 1")
    args.add_argument("--rounds", type=int, default=7)
    args.add_argument("--epochs", type=int, default=2)
    args.add_argument("--rows", type=int, default=12_800)
    args.add_argument("--seeds", type=int, default=3, help="runs for the comparison of losses, at least 2")
    args.add_argument("--device", default="cpu")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    quiet()
    x, unseen = images(args.rows, 0), images(2_560, 1)
    ways = {
        "pythae's pipeline": (pythae, pythae_vae),
        "pythae, fast products switched on": (partial(pythae, fast=True), pythae_vae),
        "plain loop with a DataLoader": (common, Plain),
        "bare loop": (bare, Plain),
        "fit, the bare loop's model": (ours, Plain),
        "fit, the package's VAE": (ours, package_vae),
        "fit, the same, with checkpoints": (safe, package_vae),
        "fit, the same, exact products": (partial(ours, precision="exact"), package_vae),
    }
    steps = args.epochs * -(-args.rows // BATCH)
    print(describe(args.device))
    print(f"{steps} steps of {BATCH} rows, {args.rounds} rounds of {args.clock} time on {args.threads} threads, "
          f"{sum(p.numel() for p in Plain().parameters()):,} parameters in every model\n", flush=True)
    models = {name: start(make(), 0, args.device) for name, (_, make) in ways.items()}
    seconds = interleave({name: partial(train, copy.deepcopy(models[name]), x, args.epochs, args.device)
                          for name, (train, _) in ways.items()}, args.rounds, clock=args.clock)
    report(seconds, base="pythae's pipeline")
    print()
    report(seconds, base="bare loop")
    for name in ("fit, the bare loop's model", "fit, the package's VAE"):
        gain = statistics.median(p / f for p, f in zip(seconds["pythae's pipeline"], seconds[name]))
        print(f"\n{name}: {gain:.2f} × the rows a second of pythae's pipeline", end="")
    print()
    print(f"\nloss on {len(unseen)} rows not trained on, after {steps} steps, mean ± sd of {args.seeds} seeds")
    for name, (train, make) in ways.items():
        losses = []
        for seed in range(args.seeds):
            model = start(make(), seed, args.device)
            train(model, x, args.epochs, args.device, seed)
            losses.append(held_out(model, unseen))
        print(f"{name:40} {statistics.mean(losses):8.3f} ± {statistics.stdev(losses):.3f}")


if __name__ == "__main__": main()
