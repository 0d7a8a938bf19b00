"""What `import tinydiff` costs beyond NumPy, in seconds: the median of 15 fresh interpreters.

Each round times the three programs below one after another; a round's difference is its own, so a
machine that slows down for a while hurts all three alike. `used` also fetches every public name:
an import that puts work off is not an import that saves it.
"""

import json
import subprocess
import sys
from statistics import median
from time import perf_counter

from machine import machine

PROGRAMS = {"numpy": "import numpy",
            "tinydiff": "import numpy, tinydiff",
            "used": "import numpy, tinydiff; [getattr(tinydiff, n) for n in tinydiff.__all__]"}
ROUNDS = 15


def seconds(program):
    start = perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return perf_counter() - start


def main():
    for program in PROGRAMS.values():
        seconds(program)                                  # bytecode is written, files are cached
    rounds = [{name: seconds(program) for name, program in PROGRAMS.items()} for _ in range(ROUNDS)]
    beyond = {name: median(r[name] - r["numpy"] for r in rounds) for name in ("tinydiff", "used")}
    print(json.dumps({"benchmark": "import time", "unit": "s", "rounds": ROUNDS,
                      "import_numpy": round(median(r["numpy"] for r in rounds), 4),
                      "import_tinydiff_beyond_numpy": round(beyond["tinydiff"], 4),
                      "with_every_name_beyond_numpy": round(beyond["used"], 4),
                      "machine": machine()}, ensure_ascii=False))


if __name__ == "__main__":
    main()
