"""What `import vae_notes` costs beside `import torch`, in fresh processes.

    python benchmarks/import_time.py"""

import subprocess
import sys

from timing import interleave, report


def fresh(statement: str):
    """A process that does nothing but `statement`."""
    return lambda: subprocess.run([sys.executable, "-c", statement], check=True)


seconds = interleave({
    "import torch": fresh("import torch"),
    "import torch, vae_notes": fresh("import torch, vae_notes"),
    "from vae_notes import VAE": fresh("from vae_notes import VAE"),
})
report(seconds, base="import torch")
torch, package, model = (sorted(t)[len(t) // 2] for t in seconds.values())
print(f"over import torch: the package {package - torch:+.3f} s, with the VAE {model - torch:+.3f} s")
