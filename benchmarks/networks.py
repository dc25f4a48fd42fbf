"""The network that the benchmarks train."""

import torch
from torch import nn
from torch.nn import functional as F


class Mlp(nn.Module):
    """A VAE n-hidden-latent for binary rows, as plain as can be."""
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
