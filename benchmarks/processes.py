"""Rows a second of `fit` with one process or several, started by torchrun.

    python benchmarks/processes.py [--batch 128] [--rounds 3]
    python benchmarks/processes.py --device cuda --runs 1x1 2x1 4x1 8x1

A run P×T has P processes of T threads (on CUDA: P GPUs). Each process takes
--batch rows a step, so P of them take P times as many. Over several nodes,
start the part that works yourself, on each node:

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
    x = (torch.rand(args.rows, 784) < .2).float()
    # fit finds its GPU by the rank torchrun gives
    options = {} if args.device.startswith("cuda") else {"device": "cpu"}
    history = fit(Mlp(hidden=args.hidden), x, epochs=1 + args.epochs, batch_size=args.batch, progress=False, **options)
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
    for name, value in dict(batch=128, rounds=3, rows=12_800, hidden=512, epochs=4, threads=1).items():
        args.add_argument(f"--{name}", type=int, default=value)
    args.add_argument("--runs", nargs="+", default=["1x1", "1x2", "2x1"])
    args.add_argument("--device", default="cpu")
    args.add_argument("--work", action="store_true", help="be one of the processes")
    args = args.parse_args()
    if args.work: return work(args)
    runs = [tuple(map(int, run.split("x"))) for run in args.runs]
    print(describe(args.device, max(t for _, t in runs)))
    print(f"VAE 784-{args.hidden}-16, {sum(p.numel() for p in Mlp(hidden=args.hidden).parameters()):,} parameters, "
          f"batch {args.batch} a process, {args.rounds} rounds\n")
    rates = {run: [] for run in runs}
    for _ in range(args.rounds):
        for run in runs: rates[run].append(start(args, *run, args.batch))
    print("processes × threads     rows/s     ratio (lowest–highest)")
    for (p, t), mine in rates.items():
        each = [a / b for a, b in zip(mine, rates[runs[0]])]
        print(f"{p:9} × {t:<7} {statistics.median(mine):12,.0f}      "
              f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})")


if __name__ == "__main__": main()
