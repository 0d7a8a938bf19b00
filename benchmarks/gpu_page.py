"""What was measured on GPUs, as tables in kernels/README.md and README.md, and the kernels' marks.

    python3 tools/gpu_check.py --out benchmarks/gpu       # on a machine with a GPU
    python benchmarks/gpu_page.py                         # anywhere; the newest report of each GPU

Replaces the blocks gpu-verified, gpu-speed and gpu-step, and writes kernels/gpu/verified.json:
which file of kernels was found right, when, and on which GPU. Each of its kernels must have run;
all that its rungs did, at every shape, must have been right, and twice the same to the bit; and the
file must not have changed since. Without a report the pages say: not yet.
"""

import argparse
import json
import sys
from pathlib import Path

from pages import replace_block

from tinydiff.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
from gpu.facts import digest  # noqa: E402

NOT_YET = ("**No rung is GPU-verified yet.** What their docstrings predict is arithmetic from\n"
           "FLOPs and bytes.")
STEPS = {"step": "training step", "sampler": "sampling step"}


def newest(folder):
    """[the newest report of each GPU, the newest first]; those of an emulator do not count."""
    found = {}
    for path in sorted(Path(folder).glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["meta"]["backend"] == "gpu":
            found[report["meta"]["device"]] = report
    return sorted(found.values(), key=lambda report: report["meta"]["date"], reverse=True)


def verified(reports, digest=digest):
    """{file: {"date", "device", "kernels"}} by the newest report that found the file right."""
    found = {}
    for report in reversed(reports):
        right, meta = right_kernels(report), report["meta"]
        for file, kernels in report.get("build", {}).get("files", {}).items():
            if (kernels and right.issuperset(f"{file} {kernel}" for kernel in kernels)
                    and meta["digests"].get(file) == digest(file)):
                found[file] = {"date": meta["date"], "device": meta["device"],
                               "kernels": sorted(kernels)}
    return dict(sorted(found.items()))


def right_kernels(report):
    """{"conv2d/rung7_mma.cu forward", …}: what ran in right rows, and never in wrong ones"""
    overrun = report["meta"].get("planted overrun", {})
    cut_short = any(line.startswith("correctness:") and line.endswith("no time was left")
                    for line in report["left_out"])
    if report["meta"]["quick"] or cut_short or not overrun.get("ok"):
        return set()                                      # it has not seen enough to vouch for them
    rows = [row for row in report["kernels"] if "ok" in row]
    wrong = {(row["op"], row["rung"]) for row in rows if not (row["ok"] and row["bit_equal"])}
    ran = lambda is_wrong: {kernel for row in rows for kernel in row["launched"]
                            if ((row["op"], row["rung"]) in wrong) == is_wrong}
    return ran(False) - ran(True)


def marks_text(reports, marks):
    """The block gpu-verified."""
    lines = []
    for meta in (report["meta"] for report in reports):
        files = [file for file, mark in marks.items()
                 if (mark["date"], mark["device"]) == (meta["date"], meta["device"])]
        if files:
            lines.append(f"- {on(meta)}: {', '.join(f'`{file}`' for file in files)}")
    return "GPU-verified, with all of their kernels:\n\n" + "\n".join(lines) if lines else NOT_YET


def on(meta):
    """Where and when, in a few words"""
    commit = f", commit {meta['commit'][:7]}" if meta.get("commit") else ""
    return f"{meta['device']}, {meta['date']}{commit}" + " with changes" * bool(meta.get("dirty"))


def speed_text(reports):
    """The block gpu-speed: a heading for each GPU, a table for each folder of kernels."""
    parts = []
    for report in reports:
        rows = [row for row in report["kernels"] if "ms" in row]
        if rows:
            parts.append(f"**{on(report['meta'])}.** {conditions(report)}")
        for folder in dict.fromkeys(row["op"].split(".")[0] for row in rows):
            parts.append(table(folder, [row for row in rows if row["op"].startswith(f"{folder}.")]))
    return "\n\n".join(parts) or "*No time has been measured on a GPU yet.*"


def conditions(report):
    pace = {name: f"{found['per_second'] / 1e12:.1f}" for name, found in report["ceilings"].items()}
    return (f"Milliseconds, medians. A copy moves {pace.get('bytes', '?')} TB/s, a product does "
            f"{pace.get('bfloat16', '?')} TFLOP/s in bf16 and {pace.get('float32', '?')} in "
            "float32; the floor is the time that these leave. PyTorch "
            f"{report['meta']['versions'].get('torch')}, eager and compiled, channels_last. "
            "† where the result was not found right at that shape: `python3 tools/gpu_check.py`")


def table(folder, rows):
    """A row for each operation and shape, the fastest rung in bold."""
    rungs = list(dict.fromkeys(row["rung"] for row in rows))
    columns = [folder, "shape", *rungs, "floor", "torch", "compiled", "best ÷ torch"]
    lines = [f"| {' | '.join(columns)} |", "|---|---|" + "---:|" * (len(rungs) + 4)]
    for op, shape, dtype in dict.fromkeys((row["op"], row["shape"], row["dtype"]) for row in rows):
        same = {row["rung"]: row for row in rows
                if (row["op"], row["shape"], row["dtype"]) == (op, shape, dtype)}
        best = min(same.values(), key=lambda row: row["ms"])
        theirs = [best.get("torch_ms"), best.get("compile_ms")]
        peer = min(filter(None, theirs), default=None)
        cells = [f"{op.split('.')[1]}, {dtype}", shape,
                 *(ours(same.get(rung), same.get(rung) is best) for rung in rungs),
                 *(f"{ms:.3f}" if ms else "" for ms in (best.get("floor_ms"), *theirs)),
                 f"{best['ms'] / peer:.2f}" if peer else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ours(row, best):
    """A rung's milliseconds, with † where it was not found right at this shape."""
    if row is None:
        return ""
    text = f"{row['ms']:.3f}" + " †" * (not row.get("ok"))
    return f"**{text}**" if best else text


def step_text(reports, marks):
    """The block gpu-step, of rows such as {"batch": 128, "ours_ms": …, "torch_ms": …}"""
    count = f"{len(marks)} files of kernels are verified" if marks else "Nothing is verified yet"
    parts = [f"{count} on a GPU: [kernels/README.md](kernels/README.md)."]
    for report in reports:
        rows = [{"": words, **row} for what, words in STEPS.items() for row in report[what] or []]
        if rows:
            columns = [key for key in dict.fromkeys(key for row in rows for key in row)
                       if not key.endswith("_spread")]
            heads = [key.replace("_ms", ", ms").replace("_bytes", ", GB") for key in columns]
            parts += [f"**{on(report['meta'])}.** `python3 tools/gpu_check.py`", "\n".join([
                f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(columns) - 1),
                *(f"| {' | '.join(cell(key, row.get(key)) for key in columns)} |"
                  for row in rows)])]
    return "\n\n".join(parts)


def cell(key, value):
    if value is not None and key.endswith("_bytes"):
        value = value / 1e9
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", default=ROOT / "benchmarks" / "gpu", metavar="DIR")
    parser.add_argument("--kernels", default=ROOT / "kernels" / "README.md", metavar="PAGE")
    parser.add_argument("--readme", default=ROOT / "README.md", metavar="PAGE")
    parser.add_argument("--verified", default=ROOT / "kernels" / "gpu" / "verified.json")
    asked = parser.parse_args(words)
    reports = newest(asked.reports)
    marks = verified(reports)
    write_atomically(asked.verified, (json.dumps(marks, indent=1) + "\n").encode())
    replace_block(asked.kernels, "gpu-verified", marks_text(reports, marks))
    replace_block(asked.kernels, "gpu-speed", speed_text(reports))
    replace_block(asked.readme, "gpu-step", step_text(reports, marks))
    print(f"{len(reports)} GPUs, {len(marks)} files of kernels verified")


if __name__ == "__main__":
    main()
