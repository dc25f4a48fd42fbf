"""What each way of making a step faster is worth: all of them, then all but one.

    python benchmarks/steps.py [--threads 2] [--rounds 7] [--batch 128] [--hidden 512] [--device cpu]"""

import argparse
import copy
from contextlib import nullcontext
from functools import partial

import torch
from machine import describe
from networks import Mlp
from timing import interleave, report
from torch.utils.data import DataLoader, TensorDataset


def batches(x, size, loader):
    """Shuffled batches by a DataLoader, or gathered into one reused buffer."""
    if loader: yield from (batch for (batch,) in DataLoader(TensorDataset(x), size, shuffle=True)); return
    buffer = x.new_empty(size, *x.shape[1:])
    for rows in torch.randperm(len(x), device=x.device).split(size):
        yield torch.index_select(x, 0, rows, out=buffer[:len(rows)])


def train(model, x, size, loader=False, fused=True, fast=True, read=False, half=False, compiled=False):
    """Two epochs, with each way on or off."""
    before, total = torch.get_float32_matmul_precision(), 0.
    torch.set_float32_matmul_precision("medium" if fast else "highest")
    adam = torch.optim.Adam(model.parameters(), 1e-3, fused=fused)
    for batch in (b for _ in range(2) for b in batches(x, size, loader)):
        with torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext():
            loss = (compiled or model.terms)(batch)["loss"]
        loss.backward()
        adam.step()
        adam.zero_grad()
        total += loss.item() if read else loss.detach()
    torch.set_float32_matmul_precision(before)
    return float(total)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(threads=2, rounds=7, batch=128, hidden=512, rows=12_800).items():
        args.add_argument(f"--{name}", type=int, default=value)
    args.add_argument("--compile", action="store_true", help="try torch.compile too (needs a C++ compiler)")
    args.add_argument("--device", default="cpu")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = (torch.rand(args.rows, 784) < .2).float().to(args.device)
    model = Mlp(hidden=args.hidden).to(args.device)
    ways = {
        "all of them": {},
        "but a DataLoader": {"loader": True},
        "but Adam not fused": {"fused": False},
        "but exact float32 products": {"fast": False},
        "but .item() in every step": {"read": True},
        "none of them": {"loader": True, "fused": False, "fast": False, "read": True},
        "all, and bfloat16 autocast": {"half": True},
    }
    made = {name: copy.deepcopy(model) for name in ways}
    if args.compile:
        ways["all, and torch.compile"] = {}
        made["all, and torch.compile"] = copy.deepcopy(model)
    work = {name: partial(train, made[name], x, args.batch, **how) for name, how in ways.items()}
    if args.compile:
        name = "all, and torch.compile"
        work[name] = partial(train, made[name], x, args.batch, compiled=torch.compile(made[name].terms))
    print(describe(args.device))
    print(f"VAE 784-{args.hidden}-16, {len(x)} rows twice, batch {args.batch}, {args.rounds} rounds\n")
    report(interleave(work, args.rounds), base="all of them")


if __name__ == "__main__": main()
