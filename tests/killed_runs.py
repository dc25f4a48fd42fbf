"""Train a model in a process that is killed again and again.

    python tests/killed_runs.py FOLDER KILLS SEED [memmap]

Trains once undisturbed into FOLDER/whole, then in FOLDER/killed with at least
KILLS kills (a fresh folder, killed-2 and so on, whenever a run got through).
A fork for each attempt saves importing torch each time. Used by
test_resume.py."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vae_notes import files
from vae_notes.training import cosine, fit, seeded


class Model(nn.Module):
    """Dropout, statistics and sampled noise: all that could go astray."""
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.2), nn.Linear(16, 4))
        self.decoder = nn.Linear(2, 6)

    def terms(self, x, kl_weight=1.):
        mu, logvar = self.encoder(x).chunk(2, -1)
        z = mu + torch.randn_like(mu) * (.5 * logvar).exp()
        distortion = (x - self.decoder(z)).square().sum(-1).mean()
        # Draw from the other generators too: they are part of the promise.
        distortion = distortion * (1 + .01 * random.random() + .01 * np.random.rand())
        rate = .5 * (mu.square() + logvar.exp() - 1 - logvar).sum(-1).mean()
        return {"loss": distortion + kl_weight * rate, "distortion": distortion, "rate": rate}


def train(folder: Path, data) -> None:
    with seeded(0): model = Model()
    valid = torch.linspace(-1, 1, 120).view(20, 6)
    fit(model, data, epochs=4, batch_size=16, lr=.1, valid=valid, patience=3, ema=.9, clip=5.,
        schedule=cosine(1), kl_warmup=1, folder=folder, resume=True, checkpoint_every=0, seed=3)
    files.write_state(folder / "model", model.state_dict())


def attempt(folder: Path, data, sabotage: str | None) -> int:
    """Train in a fork; with `sabotage` it kills itself when it calls that function of os. Its id."""
    child = os.fork()
    if child: return child
    try:
        if sabotage: setattr(files.os, sabotage, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        train(folder, data)
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)


def wait(child: int, seconds: float) -> int | None:
    """Kill the child after a while; its exit code, None if it was killed."""
    end = time.monotonic() + seconds
    done = 0
    while not done and time.monotonic() < end:
        time.sleep(.0005)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        done, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main() -> None:
    torch.set_num_threads(1)
    root, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    data = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    if "memmap" in sys.argv:
        np.save(root / "data.npy", data.numpy())
        data = np.load(root / "data.npy", mmap_mode="r")
    train(root / "warm", data)  # imports what forks would each import again
    start = time.monotonic()
    train(root / "whole", data)
    length = time.monotonic() - start
    places, through = [], 0
    while len(places) < kills or not through:
        folder = root / f"killed-{through + 1}"
        sabotage = {3: "replace", 6: "fsync", 9: "replace", 12: "fsync"}.get(len(places))
        code = wait(attempt(folder, data, sabotage), 60 if sabotage else chance.uniform(0, length / 4))
        if code is None: places.append(place(folder))
        elif code == 0: through += 1
        else: sys.exit("a resumed run failed")
    # The last one is finished too, so that every kill counts.
    assert wait(attempt(root / f"killed-{through + 1}", data, None), 60) == 0
    print(through + 1, json.dumps(places))


def place(folder: Path) -> tuple[int, int]:
    """Where the next attempt will go on: epoch, steps of it done."""
    if not (folder / "checkpoint.safetensors").exists(): return 0, 0
    state = files.read_state(folder / "checkpoint.safetensors")
    return state["epoch"], state["done"]


if __name__ == "__main__": main()
