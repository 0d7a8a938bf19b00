"""python -m gpu MODULE …: the main function of one of these modules, in a process of its own."""

import sys
from importlib import import_module

if __name__ == "__main__":
    sys.exit(import_module(f"gpu.{sys.argv[1]}").main(*sys.argv[2:]))
