"""What a kernel became: its registers and memory as ptxas counts them, its instructions.

    resources(log)["conv3x3"]["registers"]                # of (code, log) = machine_code.cubin(…)
    print(disassembly(code)["conv3x3"])                   # what a GPU will execute
    instructions(disassembly(code)["conv3x3"])            # Counter({"HMMA.16816.F32.BF16": 64, …})
"""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

RESERVED = 1024                                           # bytes of a block that sm_90 keeps
SAID = {"registers": r"Used (\d+) registers", "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads", "stack": r"(\d+) bytes stack frame",
        "shared": r"Used .* (\d+) bytes smem"}


def resources(log):
    """{kernel: {registers, spill_stores, spill_loads, stack, shared}}, all but the first in bytes.

    From what ptxas says of a kernel; of the memory that its block shares nvJitLink knows more.
    """
    table, kernel, arch = {}, None, ""
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            kernel, arch = found.groups()
            table[kernel] = dict.fromkeys(SAID, 0)
        elif found := re.search(r"Function properties for '?([^\s']+)", line):
            kernel = found[1]                             # or a function that kernels call
        elif kernel in table:
            for what, words in SAID.items():
                if found := re.search(words, line):
                    table[kernel][what] = int(found[1])
            if found := re.search(r"info\s*: used .* (\d+) bytes smem", line):
                table[kernel]["shared"] = max(0, int(found[1]) - RESERVED * (arch[:5] == "sm_90"))
    return table


def disassembly(code):
    """{kernel: its instructions as text}, by nvdisasm."""
    try:
        from cuda import pathfinder
        program = pathfinder.find_nvidia_binary_utility("nvdisasm")
    except ImportError:
        program = None
    if program is None:
        raise ModuleNotFoundError("machine code is read with nvdisasm; "
                                  "pip install 'tinydiff[kernels]'")
    with tempfile.TemporaryDirectory() as passing:
        file = Path(passing) / "code.cubin"
        file.write_bytes(code)
        text = subprocess.run([program, "-c", file], capture_output=True, text=True,
                              check=True).stdout
    return sections(text)


def sections(text):
    """{kernel: its part} of what nvdisasm prints."""
    _, *parts = re.split(r'(?m)^\s*\.section\s+\.text\.([^\s,]+),.*\n', text)
    return {name: re.sub(r"(?m)^//-----.*|^\s+\.\w+ .*\n", "", body).strip("\n")
            for name, body in zip(parts[::2], parts[1::2])}


def instructions(text):
    """How often each instruction stands in a disassembly."""
    return Counter(re.findall(r"(?m)^\s+/\*[0-9a-f]+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)", text))
