"""On what a benchmark ran: nobody can read a time without it."""

import os
import platform
import time
from pathlib import Path

import torch


def processor() -> str:
    """The processor's name, as Linux has it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(device: str = "cpu", threads: int | None = None) -> str:
    """Date, processor, threads, versions and how busy the machine was."""
    where = f"{processor()}, {os.cpu_count()} cores, up to {threads or torch.get_num_threads()} threads"
    if device.startswith("cuda"): where = f"{torch.cuda.get_device_name(device)}, {where}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{time.strftime('%Y-%m-%d')}: {where}, torch {torch.__version__}{load}"
