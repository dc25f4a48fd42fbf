"""Time several ways of doing the same work side by side.

Machines are noisy, so the ways take turns (A B C A B C …) and only ratios
within one run mean anything: the median over the rounds, beside the spread.
Where other programs hold the cores, count processor time of one thread
instead of the time on the wall: it stands still while they run."""

import gc
import statistics
import time
from collections.abc import Callable

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleave(ways: dict[str, Callable[[], object]], rounds: int = 9, warmup: int = 1,
               clock: str = "wall") -> dict[str, list[float]]:
    """Seconds that each way took in each round."""
    seconds, now = {name: [] for name in ways}, CLOCKS[clock]
    for r in range(warmup + rounds):
        for name, work in ways.items():
            gc.collect()
            start = now()
            work()
            if r >= warmup: seconds[name].append(now() - start)
    return seconds


def report(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """Print a line a way, and return its time as a ratio to `base`."""
    ratios = {}
    for name, times in seconds.items():
        each = [t / b for t, b in zip(times, seconds[base])]
        ratios[name] = statistics.median(each)
        print(f"{name:40} {statistics.median(times):9.4f} s   "
              f"{ratios[name]:5.2f} × {base}   ({min(each):.2f}–{max(each):.2f})")
    return ratios
