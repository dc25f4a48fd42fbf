"""What `fit` costs beside the barest loop that trains the same model.

    python benchmarks/fit_overhead.py [THREADS=2]

The bare loop has all that is known to be fast, and nothing that makes a run
safe: one permutation an epoch, rows gathered into a reused buffer, fused Adam,
the faster of the two ways to multiply float32 matrices, the loss added up on
tensors."""

import sys

import torch
from timing import interleave, report
from torch import nn
from torch.nn import functional as F

from vae_notes.training import fit

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 2


class Mlp(nn.Module):
    """The VAE 784-512-16 that peers train by default, as plain as can be."""
    def __init__(self, n=784, hidden=512, latent=16):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, n))

    def terms(self, x):
        mu, logvar = self.encoder(x).chunk(2, -1)
        logits = self.decoder(mu + torch.randn_like(mu) * (.5 * logvar).exp())
        distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        rate = .5 * (mu.square() + logvar.exp() - 1 - logvar).sum() / len(x)
        return {"loss": distortion + rate, "distortion": distortion, "rate": rate}


def bare(model, data, epochs, batch_size, switch, lr=1e-3, seed=0):
    """The loop without a net under it."""
    torch.manual_seed(seed)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(switch)
    adam = torch.optim.Adam(model.parameters(), lr, fused=True)
    buffer = data.new_empty(batch_size, *data.shape[1:])
    losses = []
    for _ in range(epochs):
        order, total = torch.randperm(len(data)), torch.zeros(())
        for i in range(0, len(data), batch_size):
            rows = order[i:i + batch_size]
            x = torch.index_select(data, 0, rows, out=buffer[:len(rows)])
            loss = model.terms(x)["loss"]
            loss.backward()
            adam.step()
            adam.zero_grad()
            total += loss.detach() * len(rows)
        losses.append(total.item() / len(data))
    torch.set_float32_matmul_precision(before)
    return losses


def compare(name, make, data, epochs, switch, batch_size=128, rounds=31):
    torch.manual_seed(0)
    ours, theirs = make(), make()
    steps = epochs * -(-len(data) // batch_size)
    print(f"\n{name}: {steps} steps of {batch_size} rows, {THREADS} threads")
    seconds = interleave({
        "bare loop": lambda: bare(theirs, data, epochs, batch_size, switch),
        "fit": lambda: fit(ours, data, epochs=epochs, batch_size=batch_size, progress=False),
    }, rounds)
    report(seconds, base="bare loop")
    best = {k: 1e6 * min(v) / steps for k, v in seconds.items()}
    print(f"best, per step: bare {best['bare loop']:.1f} µs, fit {best['fit']:.1f} µs: "
          f"{best['fit'] - best['bare loop']:+.1f} µs, × {best['fit'] / best['bare loop']:.3f}")


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    g = torch.Generator().manual_seed(0)
    compare("MLP VAE 784-512-16", Mlp, (torch.rand(6_400, 784, generator=g) < .2).float(), epochs=1, switch="medium")
    compare("tiny VAE 10-16-2", lambda: Mlp(10, 16, 2), torch.rand(51_200, 10, generator=g).round(), epochs=1, switch="highest")
