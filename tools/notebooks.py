"""notebooks/NN_name.py (jupytext percent) -> NN_name.ipynb, executed, the same bytes every time.

    python tools/notebooks.py                execute every script, write its notebook
    python tools/notebooks.py --only NAME    just that one: 05, training, or 05_training
    python tools/notebooks.py --check        run the scripts fast (TINYDIFF_FAST=1), write nothing,
                                             and see that each notebook shows its script's cells

Cells are called c00, c01, …; a failure names the notebook and the cell.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
LIMIT = 300_000      # bytes of a committed notebook


def scripts(only=None):
    """The notebooks' sources in order; SystemExit if two share a number or none is so called."""
    found = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    numbers = [path.stem[:2] for path in found]
    if len(set(numbers)) < len(numbers):
        raise SystemExit(f"notebooks: two share a number: {', '.join(path.stem for path in found)}")
    wanted = [path for path in found if only in (None, path.stem, path.stem[:2], path.stem[3:])]
    if not wanted:
        raise SystemExit(f"notebooks: none is called {only}; there are "
                         f"{', '.join(path.stem for path in found) or 'none at all'}")
    return wanted


def notebook(script):
    """The notebook that a script describes, not yet executed: fixed ids, bare metadata."""
    import jupytext

    book = jupytext.read(script)
    book.metadata = {"kernelspec": KERNEL}
    book.nbformat, book.nbformat_minor = 4, 5
    for i, cell in enumerate(book.cells):
        cell.id = f"c{i:02d}"
    return book


def execute(book, name):
    """Run the cells in place, in the notebooks' folder; SystemExit names the cell that fails."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    os.environ.pop("TINYDIFF_FAST", None)         # what is committed is the full run
    client = NotebookClient(book, timeout=1200, record_timing=False,
                            resources={"metadata": {"path": str(FOLDER)}})
    with client.setup_kernel():
        for i, cell in enumerate(book.cells):
            try:
                client.execute_cell(cell, i)
            except (CellExecutionError, CellTimeoutError) as error:
                raise SystemExit(f"{name}, cell {cell.id}: {error}") from None
    book.metadata.pop("language_info", None)      # it holds the Python version


def write(script):
    """Execute a script's notebook and put it beside the script."""
    import nbformat

    book = notebook(script)
    execute(book, script.stem)
    text = nbformat.writes(book) + "\n"
    if len(text.encode()) > LIMIT:
        raise SystemExit(f"{script.stem}: {len(text.encode()):,} bytes, at most {LIMIT:,}: "
                         "draw fewer or smaller figures")
    script.with_suffix(".ipynb").write_text(text, encoding="utf-8")


def check(script):
    """Run a script in its fast mode, and compare its cells with those of the committed notebook."""
    fast = {"MPLBACKEND": "Agg", **os.environ, "TINYDIFF_FAST": "1"}
    done = subprocess.run([sys.executable, script.name], cwd=FOLDER, env=fast,
                          capture_output=True, text=True, check=False)
    if done.returncode:
        lines = re.findall(rf'{script.name}", line (\d+)', done.stderr)
        above = script.read_text(encoding="utf-8").splitlines()[:int(lines[-1])] if lines else []
        cell = sum(line.startswith("# %%") for line in above) - 1
        raise SystemExit(f"{script.stem}, cell c{max(cell, 0):02d}:\n{done.stderr}")

    import nbformat  # after the run: it needs no Jupyter

    committed = script.with_suffix(".ipynb")
    if not committed.exists():
        raise SystemExit(f"{committed.name} is missing: make notebooks")
    shown = nbformat.read(committed, as_version=4)
    if [source(cell) for cell in shown.cells] != [source(cell) for cell in notebook(script).cells]:
        raise SystemExit(f"{committed.name} shows other cells than {script.name}: make notebooks")


def source(cell):
    """What a reader sees of a cell before it runs."""
    return cell.id, cell.cell_type, cell.source


def main():
    parser = argparse.ArgumentParser(description="Execute the notebooks, or check them.")
    parser.add_argument("--check", action="store_true", help="run fast, write nothing, compare")
    parser.add_argument("--only", metavar="NAME", help="just this one")
    options = parser.parse_args()
    for script in scripts(options.only):
        start = time.perf_counter()
        (check if options.check else write)(script)
        print(f"{script.stem}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
