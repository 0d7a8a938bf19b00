"""What this run is of: the GPU's name and clocks as they are, versions, the sources' commit.

Nothing is changed on the GPU, and no name or folder of the machine is noted.
"""

import hashlib
import platform
import subprocess
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from compile_cuda import files
from tinydiff_kernels.gpu import machine_code

from gpu import KERNELS, ROOT
from tinydiff.backend import why_no_gpu

PACKAGES = ("numpy", "ml_dtypes", "numba", "numba-cuda", "cuda-bindings", "nvidia-cuda-nvrtc",
            "torch", "triton")
ASKED = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


def items(options):
    return [("facts", partial(facts, options["backend"]))]


def facts(backend):
    """For the report's `meta`; `no_gpu` is why there is none."""
    if backend == "gpu" and (reason := why_no_gpu()):
        return {"no_gpu": reason}
    return {"date": date.today().isoformat(), "backend": backend, **sources(),
            "versions": versions(), **(of_gpu() if backend == "gpu" else {"device": "host"})}


def of_gpu():
    import cupy
    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    return {"device": properties["name"].decode(), "capability": device.compute_capability,
            "multiprocessors": properties["multiProcessorCount"],
            "l2_bytes": properties["l2CacheSize"], "memory_bytes": properties["totalGlobalMem"],
            "cuda": {"cupy": cupy.__version__,
                     "driver": cupy.cuda.runtime.driverGetVersion(),
                     "runtime": cupy.cuda.runtime.runtimeGetVersion()},
            "as_found": as_found(), "tf32": tf32()}


def as_found():
    """What nvidia-smi says, read only: {"clocks.sm": "345 MHz", …}"""
    try:
        said = subprocess.run(["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(ASKED.split(","), said.splitlines()[0].split(", ")))


def tf32():
    """Whether PyTorch rounds float32 to 10 bits before it multiplies, as it is set by default."""
    try:
        import torch
    except ImportError:
        return None
    return {"matmul": torch.backends.cuda.matmul.allow_tf32,
            "cudnn": torch.backends.cudnn.allow_tf32}


def sources():
    """The commit, whether files differ from it, and the digest of each file of kernels."""
    changes = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes),
            "digests": {file: digest(file) for file in files()}}


def digest(file):
    """Of a file of kernels, of what it includes, and of the .py beside it that launches them."""
    path, beside = KERNELS / file, (KERNELS / file).with_suffix(".py")
    texts = machine_code.texts(path) if path.suffix == ".cu" else []
    texts += [beside.read_text(encoding="utf-8")] if beside.is_file() else []
    return hashlib.sha256(repr(texts).encode()).hexdigest()[:16]


def git(*words):
    """What git says, or None where it has nothing to say."""
    try:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True,
                              check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def versions():
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
