#!/usr/bin/env python
"""How much memory a table of Numerai's full size takes: made, opened, trained on.

    python benchmarks/numerai_memory.py FOLDER [--rows 2420521] [--features 1191] [--steps 600] [--mapped] [--keep]

FOLDER needs room for about 4 GB. Each stage is a process of its own, and says what Linux counts for it:

    start   resident memory after all imports, before any work: the interpreter and its libraries
    peak    the most that was resident at any moment (VmHWM), with pages of mapped files in it
    anon    the most that was resident and no page of a file (RssAnon, looked at every 20 ms): what
            the process cannot give back

The bar is peak − start below 2 GB. With --mapped it trains once more on table.x, whose pages count in `peak`."""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn

from vae_notes.autoencoder import mlp
from vae_notes.tabular_data import open_table, return_large_blocks, write_twin
from vae_notes.training import fit

STAGES = ["make", "open", "reopen", "train", "train_mapped"]


def status() -> dict[str, float]:
    """Linux's account of this process, MB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) / 1e3 for line in lines if line[-1] == "kB"}


class Watch(threading.Thread):
    """Remembers the largest RssAnon."""
    def __init__(self):
        super().__init__(daemon=True)
        self.anon, self.over = 0., False
        self.start()

    def run(self):
        while not self.over:
            self.anon = max(self.anon, status()["RssAnon"])
            time.sleep(.02)


class Squeeze(nn.Module):
    """The source's sizes without its noise: what is measured here is the data's way into the model."""
    def __init__(self, n, latent=32):
        super().__init__()
        self.net = mlp([n, latent, latent, n])

    def loss(self, codes):
        x = codes.float() / 4
        return (self.net(x) - x).square().sum(1).mean()


def stage(name: str, folder: Path, rows: int, features: int, steps: int) -> dict:
    """One stage, in this process."""
    torch.manual_seed(0)
    path, before, watch, began = folder / "train.parquet", status(), Watch(), time.perf_counter()
    about = {}
    if name == "make": write_twin(path, rows, features=features, seed=0)
    else: table = open_table(path)
    if name.startswith("train"):
        train, valid = table.split()
        if steps * 4096 < len(train): train = train[:steps * 4096]
        if name == "train": return_large_blocks()
        parts = (train.on_disk(), valid.on_disk()) if name == "train" else (train.x, valid.x)
        history = fit(Squeeze(features), parts[0], valid=parts[1], epochs=1, batch_size=4096, lr=5e-3)
        about = {"steps": -(-len(train) // 4096), "rows": len(train) + len(valid),
                 "valid_loss": round(float(history["valid_loss"][-1]), 2)}
    watch.over, after = True, status()
    return {"stage": name, "seconds": round(time.perf_counter() - began),
            "start": round(before["VmRSS"]), "start_anon": round(before["RssAnon"]),
            "peak": round(after["VmHWM"]), "anon": round(watch.anon), **about}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2_420_521)
    parser.add_argument("--features", type=int, default=1191)
    parser.add_argument("--steps", type=int, default=600, help="at most as many; 503 are an epoch of the full table")
    parser.add_argument("--stage", choices=STAGES, help="this one only, in this process")
    parser.add_argument("--mapped", action="store_true", help="train a second time, on table.x")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    args = parser.parse_args()
    if args.stage:
        line = json.dumps(stage(args.stage, args.folder, args.rows, args.features, args.steps))
        print(line, flush=True)
        with open(args.folder / "numerai_memory.jsonl", "a") as file: print(line, file=file)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in STAGES[:5 if args.mapped else 4]: subprocess.run([sys.executable, __file__, *sys.argv[1:], "--stage", name], check=True)
    if not args.keep: subprocess.run(["rm", "-r", args.folder / "train.parquet", args.folder / "train.parquet.codes"])


if __name__ == "__main__": main()
