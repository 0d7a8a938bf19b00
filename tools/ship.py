"""Turn a finished run into a checkpoint that ships with the package.

    tinydiff train mnist --out runs/mnist && python tools/ship.py runs/mnist mnist

Only the running mean of the weights is kept, and of an autoencoder all, as float16, with the
recipe, seed included, that made it: tinydiff/weights/NAME.safetensors. At most 3 MB.
"""

import sys
from pathlib import Path

import numpy as np

from tinydiff import checkpoint

WEIGHTS = Path(__file__).resolve().parents[1] / "tinydiff" / "weights"
LARGEST = 3_000_000                                       # bytes


def ship(run, name):
    """Write weights/NAME.safetensors from the folder of a finished run; return its bytes."""
    arrays, config = checkpoint.load(Path(run) / "checkpoint.safetensors")
    kept = {key: array.astype(np.float16) for key, array in arrays.items()
            if key.startswith(("ema/", "autoencoder/"))}
    lost = [key for key, array in kept.items() if not np.isfinite(array).all()]
    if lost:
        raise ValueError(f"{lost[0]} does not fit into float16")
    size = sum(array.nbytes for array in kept.values())
    if size > LARGEST:
        raise ValueError(f"{run}: {size:,} bytes of weights, at most {LARGEST:,} are shipped")
    steps = config.pop("step")
    checkpoint.save(WEIGHTS / f"{name}.safetensors", kept, config | {"steps_trained": steps})
    return size


if __name__ == "__main__":
    print(f"{ship(*sys.argv[1:3]):,} bytes")
