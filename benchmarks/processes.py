"""Rows a second of `fit` with one process or several, started by torchrun.

    python benchmarks/processes.py [--batch 128 512 2048] [--rounds 3]
    python benchmarks/processes.py --device cuda --runs 1x1 2x1 4x1 8x1

A run P×T has P processes of T threads (on CUDA: P GPUs). Each process takes
--batch rows a step, so P of them take P times as many. The runs take turns,
and each is divided by the first run with its batch. Over several nodes, start
the part that works yourself, on each node:

    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \\
        benchmarks/processes.py --work --device cuda"""

import argparse
import json
import statistics
import subprocess
import sys

import torch
from machine import describe
from networks import Mlp

from vae_notes.training import fit


def work(args) -> None:
    """What each process does; the first prints the rows a second."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = (torch.rand(max(args.rows, 24 * args.batch[0]), 784) < .2).float()
    # fit finds its GPU by the rank torchrun gives
    options = {} if args.device.startswith("cuda") else {"device": "cpu"}
    history = fit(Mlp(hidden=args.hidden), x, epochs=1 + args.epochs, batch_size=args.batch[0], progress=False, **options)
    import torch.distributed as dist
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    seconds = statistics.median(history["seconds"][1:])  # the first epoch warms up
    if rank == 0: print("RESULT", json.dumps({"processes": world, "rows_per_second": len(x) / seconds}), flush=True)
    if dist.is_initialized(): dist.destroy_process_group()


def start(args, processes: int, threads: int, batch: int) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    if processes == 1: command = [sys.executable]
    command += [__file__, "--work", f"--threads={threads}", f"--batch={batch}", f"--rows={args.rows}",
                f"--hidden={args.hidden}", f"--epochs={args.epochs}", f"--device={args.device}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    found = [line.split("RESULT ", 1)[1] for line in done.stdout.splitlines() if "RESULT " in line]
    if done.returncode or not found: sys.exit(done.stderr[-3000:])
    return json.loads(found[0])["rows_per_second"]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(rounds=3, rows=12_800, hidden=512, epochs=4, threads=1).items():
        args.add_argument(f"--{name}", type=int, default=value)
    args.add_argument("--batch", type=int, nargs="+", default=[128, 512, 2048], help="rows a process and step")
    args.add_argument("--runs", nargs="+", default=["1x1", "1x2", "2x1"])
    args.add_argument("--device", default="cpu")
    args.add_argument("--work", action="store_true", help="be one of the processes")
    args = args.parse_args()
    if args.work: return work(args)
    runs = [tuple(map(int, run.split("x"))) for run in args.runs]
    print(describe(args.device, max(t for _, t in runs)))
    print(f"VAE 784-{args.hidden}-16, {sum(p.numel() for p in Mlp(hidden=args.hidden).parameters()):,} parameters, "
          f"{args.rounds} rounds\n")
    rates = {(batch, run): [] for batch in args.batch for run in runs}
    for _ in range(args.rounds):
        for (batch, run), mine in rates.items(): mine.append(start(args, *run, batch))
    print("batch   processes × threads     rows/s     ratio (lowest–highest)")
    for (batch, (p, t)), mine in rates.items():
        each = [a / b for a, b in zip(mine, rates[batch, runs[0]])]
        print(f"{batch:5} {p:11} × {t:<9} {statistics.median(mine):10,.0f}     "
              f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})")


if __name__ == "__main__": main()
