"""Training a VRAE: the package, the same model on stock nn.RNN, and what a popular port does.

    python benchmarks/vrae_speed.py [--threads 1] [--clock cpu] [--rounds 7] [--rows 800] [--batch 100] [--hidden 500]

An epoch over random rolls of 50 frames and 49 keys, tanh cells, two latents. The models on nn.RNN have the same
function and the same weights to start from, which is checked, as are their gradients. The port (LSTM, zeros as
inputs, squared error, gradients clipped, batches by a DataLoader) is rebuilt here from its published training step."""

import argparse
import time
from functools import partial

import torch
from machine import describe
from timing import CLOCKS, interleave, report
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from vae_notes.training import fit
from vae_notes.vrae import VRAE

T, KEYS, LATENT = 50, 49, 2


class Stock(nn.Module):
    """The tanh VRAE with a teacher, on nn.RNN."""
    def __init__(self, hidden):
        super().__init__()
        self.enc, self.heads = nn.RNN(KEYS, hidden), nn.Linear(hidden, 2 * LATENT)
        self.start, self.dec, self.out = nn.Linear(LATENT, hidden), nn.RNN(KEYS, hidden), nn.Linear(hidden, KEYS)

    def loss(self, x, eps=None):
        x = x.transpose(0, 1).contiguous()
        mu, logvar = self.heads(self.enc(x)[1][0]).chunk(2, -1)
        z = mu + (torch.randn_like(mu) if eps is None else eps) * (.5 * logvar).exp()
        late = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        logits = self.out(self.dec(late, torch.tanh(self.start(z))[None])[0])
        distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / x.shape[1]
        return distortion - .5 * (1 + logvar - mu**2 - logvar.exp()).sum(-1).mean()

    def take(self, model):
        """The weights of a VRAE; the second bias of each nn.RNN is zero."""
        pairs = [(self.enc, model.encoder.layer), (self.dec, model.decoder.layer)]
        with torch.no_grad():
            for rnn, layer in pairs:
                rnn.weight_ih_l0.copy_(layer.inputs.weight)
                rnn.weight_hh_l0.copy_(layer.weight)
                rnn.bias_ih_l0.copy_(layer.inputs.bias)
                rnn.bias_hh_l0.zero_()
        self.heads.load_state_dict(model.encoder.heads.state_dict())
        self.start.load_state_dict(model.decoder.start.state_dict())
        self.out.load_state_dict(model.decoder.out.state_dict())
        return self


class Port(nn.Module):
    """The popular port's network: LSTMs, the decoder's inputs zero."""
    def __init__(self, hidden):
        super().__init__()
        self.enc, self.mu, self.logvar = nn.LSTM(KEYS, hidden), nn.Linear(hidden, LATENT), nn.Linear(hidden, LATENT)
        self.start, self.dec, self.out = nn.Linear(LATENT, hidden), nn.LSTM(1, hidden), nn.Linear(hidden, KEYS)

    def forward(self, x):
        h = self.enc(x)[1][0][0]
        mu, logvar = self.mu(h), self.logvar(h)
        z = torch.randn_like(mu) * torch.exp(.5 * logvar) + mu
        h0 = self.start(z)[None]
        zeros = x.new_zeros(len(x), x.shape[1], 1)
        return self.out(self.dec(zeros, (h0, torch.zeros_like(h0)))[0]), mu, logvar


def train_stock(model, x, batch, fast=False):
    """A bare loop: one shuffled order, fused Adam, the loss added up on tensors."""
    before = torch.get_float32_matmul_precision()
    if fast: torch.set_float32_matmul_precision("medium")
    adam, total = torch.optim.Adam(model.parameters(), 1e-3, fused=True), 0.
    for rows in torch.randperm(len(x)).split(batch):
        loss = model.loss(x[rows])
        loss.backward()
        adam.step()
        adam.zero_grad()
        total += loss.detach()
    torch.set_float32_matmul_precision(before)
    return float(total)


def train_port(model, x, batch):
    """The port's epoch: a DataLoader, time brought to the front, squared errors summed, the KL averaged."""
    adam, total = torch.optim.Adam(model.parameters(), 1e-3), 0.
    for (rows,) in DataLoader(TensorDataset(x), batch, shuffle=True, drop_last=True):
        rows = rows.permute(1, 0, 2).requires_grad_()
        adam.zero_grad()
        out, mu, logvar = model(rows)
        loss = F.mse_loss(out, rows.detach(), reduction="sum")
        loss = loss - .5 * torch.mean(1 + logvar - mu.pow(2) - logvar.exp())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5)
        total += loss.item()
        adam.step()
    return total


def train_ours(model, x, batch, **options):
    fit(model, (x,), epochs=1, batch_size=batch, lr=1e-3, progress=False, **options)


def check(hidden, x):
    """The same loss and gradients as on nn.RNN, from the same weights and noise."""
    torch.manual_seed(0)
    ours = VRAE(KEYS, hidden, LATENT, inputs="teacher", frames=T)
    stock, eps = Stock(hidden).take(ours), torch.randn(len(x), LATENT, generator=torch.Generator().manual_seed(1))
    mine, theirs = ours.loss(x, generator=torch.Generator().manual_seed(1)), stock.loss(x, eps)
    mine.backward(), theirs.backward()
    torch.testing.assert_close(mine, theirs)
    pairs = [(ours.encoder.layer.weight, stock.enc.weight_hh_l0), (ours.decoder.layer.weight, stock.dec.weight_hh_l0),
             (ours.encoder.layer.inputs.weight, stock.enc.weight_ih_l0), (ours.encoder.heads.weight, stock.heads.weight),
             (ours.decoder.layer.inputs.weight, stock.dec.weight_ih_l0), (ours.decoder.out.weight, stock.out.weight)]
    worst = max(((a.grad - b.grad).abs().max() / b.grad.abs().max()).item() for a, b in pairs)
    assert worst < 1e-5, worst
    print(f"same loss as on nn.RNN; largest difference of a gradient {worst:.1e} of its largest entry")


def generation(hidden):
    """Seconds for 1,000 frames, 50 s of music, from one code."""
    model, z, times = VRAE(KEYS, hidden, LATENT), torch.zeros(1, LATENT), []
    for _ in range(5):
        start = time.process_time()
        model.generate(z, 1000)
        times.append(time.process_time() - start)
    print(f"50 s of music (1,000 frames) generated in {sorted(times)[2]:.2f} s of processor time")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(threads=1, rounds=7, rows=800, batch=100, hidden=500).items():
        args.add_argument(f"--{name}", type=int, default=value)
    args.add_argument("--clock", choices=CLOCKS, default="cpu", help="cpu: processor time; use it with --threads 1")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    x = (torch.rand(args.rows, T, KEYS, generator=torch.Generator().manual_seed(0)) < .06).float()
    print(describe())
    print(f"{args.rows} rolls of {T} × {KEYS}, batches of {args.batch}, {args.hidden} units, {args.rounds} rounds of "
          f"{args.clock} time on {args.threads} threads")
    check(args.hidden, x[:20])
    new = partial(VRAE, KEYS, args.hidden, LATENT, frames=T)
    ways = {
        "fit, tanh VRAE": partial(train_ours, new(inputs="teacher")),
        "fit, exact products": partial(train_ours, new(inputs="teacher"), precision="exact"),
        "stock nn.RNN": partial(train_stock, Stock(args.hidden)),
        "stock nn.RNN, fast products": partial(train_stock, Stock(args.hidden), fast=True),
        "the port (LSTM, DataLoader)": partial(train_port, Port(args.hidden)),
        "fit, hearing itself (own)": partial(train_ours, new(inputs="own")),
        "fit, no inputs (zeros)": partial(train_ours, new(inputs="zeros")),
    }
    seconds = interleave({name: partial(way, x=x, batch=args.batch) for name, way in ways.items()},
                         args.rounds, clock=args.clock)
    report(seconds, base="fit, tanh VRAE")
    generation(args.hidden)


if __name__ == "__main__": main()
