"""On what a benchmark ran: machine() says it in words that name no host and no folder."""

import json
import os
import platform
from datetime import date
from pathlib import Path

import numpy as np


def machine():
    """{cpu, cores, date, python, numpy}: the line that stands beside every measured number."""
    return {"cpu": cpu(), "cores": os.cpu_count(), "date": date.today().isoformat(),
            "python": platform.python_version(), "numpy": np.__version__}


def in_words(on):
    """A machine() as one phrase for a page."""
    return (f"{on['cpu']}, {on['cores']} cores, {on['date']}, Python {on['python']}, "
            f"NumPy {on['numpy']}")


def cpu():
    """The processor's model name, such as "Intel(R) Xeon(R) Processor"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:                                       # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    print(json.dumps(machine()))
