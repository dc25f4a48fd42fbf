"""Use the installed package as a stranger would: no book, no tests, no dev tools."""

import sys

import vae_notes

assert "torch" not in sys.modules, "import vae_notes alone must not load torch"

import fastcore
import torch

from vae_notes import VAE, MLPDecoder, MLPEncoder, fit, generator

for tool in ("nbdev", "IPython", "sklearn", "pytest"):
    assert tool not in sys.modules, f"the package must not need {tool}"

g = generator(0)
x = (torch.rand(256, 1, generator=g) > .5).float().repeat(1, 8)  # two patterns
model = VAE(MLPEncoder(8, 2, hidden=(16,)), MLPDecoder(2, 8, hidden=(16,)))
before = model.score(x).mean().item()
history = fit(model, x, epochs=20, batch_size=32, lr=1e-2)
after = model.score(x).mean().item()
assert after < before, (before, after)
assert model.sample(3).shape == (3, 8)
print(f"smoke test: fastcore {fastcore.__version__}, torch {torch.__version__}, "
      f"{vae_notes.__file__}: {before:.2f} -> {after:.2f} nats")
