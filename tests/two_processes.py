"""What test_distributed.py starts under torchrun.

    torchrun --nproc_per_node=2 tests/two_processes.py FOLDER train|resume|fail"""

import os
import sys
from pathlib import Path

import torch
from torch import nn

from vae_notes.files import write_state
from vae_notes.training import exponential, fit, seeded


class Model(nn.Module):
    """Deterministic, so that one process with twice the batch does the same."""
    def __init__(self, fail_at=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 5))
        self.fail_at, self.steps = fail_at, 0

    def terms(self, x):
        self.steps += 1
        if self.steps == self.fail_at: raise RuntimeError("the disk of this node is full")
        error = (x - self.layers(x)).square().sum(-1)
        return {"loss": error.mean(), "largest": error.max()}


def data() -> torch.Tensor:
    return torch.randn(101, 5, generator=torch.Generator().manual_seed(0))


def train(batch_size: int, epochs: int, model: nn.Module, **options):
    # 101 rows in steps of 2·16: the last one has 5, the second process none.
    return fit(model, data(), epochs=epochs, batch_size=batch_size, lr=.02, schedule=exponential(.8), clip=1.,
               ema=.9, valid=data()[:13], seed=1, **options)


def main() -> None:
    folder, what, rank = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
    torch.set_num_threads(1)
    # Different on purpose: the first process's weights count.
    with seeded(rank): model = Model(fail_at=7 if what == "fail" and rank == 1 else None)
    history = train(16, 4, model, folder=folder / "run", resume=what == "resume", checkpoint_every=0)
    write_state(folder / f"{what}-{rank}", {"model": model.state_dict(), "rows": history.rows})


if __name__ == "__main__": main()
