"""What tests of faults share: a message, taken apart, and the lines that it must name."""

import inspect
import re
from pathlib import Path

import pytest
from tinydiff_kernels.gpu.faults import Fault
from tinydiff_kernels.gpu.simulator import launch

in_every_order = pytest.mark.parametrize("order", ["forward", "reverse", 2, 3])


def lines(*functions):
    """The lines marked `# here`, as they are numbered in their file."""
    found = set()
    for function in functions:
        source, start = inspect.getsourcelines(function)
        found |= {start + i for i, line in enumerate(source) if line.endswith("# here\n")}
    return found


def fault_of(kernel, *args, grid=1, block=64, order="forward"):
    """(the fault's class, its message, {lines named}, {threads named}, {blocks named})"""
    with pytest.raises(Fault) as caught:
        launch(kernel, grid, block, *args, order=order)
    text = str(caught.value)
    file = Path(kernel.__code__.co_filename).name
    assert text.startswith(f"{file}: {kernel.__name__}: ")
    return (caught.type, text, set(map(int, re.findall(r"line (\d+)", text))),
            {int(x) for x in re.findall(r"thread \((\d+), 0, 0\)", text)},
            {int(x) for x in re.findall(r"block \((\d+), 0, 0\)", text)})
