"""The table that gpu_check.py prints at its end: short, and what failed stands last."""


def show(report):
    print_right([row for row in report["kernels"] if "ok" in row])
    print_fast([row for row in report["kernels"] if "ms" in row])
    for name, found in report["sanitizer"].items():
        print(f"sanitizer: {name}: {'ok' if found['ok'] else 'NOT OK'}")
    for what in ("step", "sampler"):
        for row in report[what] or []:
            times = {key: f"{n:.3f}" for key, n in row.items() if key.endswith("_ms")}
            print(f"{what}, batch {row['batch']}:", *map(" ".join, times.items()))
    few("left out", report["left_out"])
    few("FAILED", report["failed"])
    judged = [row["ok"] for row in report["kernels"] if "ok" in row]
    print(f"\n{sum(judged)} of {len(judged)} cases are right, {len(report['failed'])} FAILED")


def print_right(rows):
    """A line for each operation and rung, with the worst of its shapes."""
    if rows:
        print(f"\n{'operation':30} {'rung':16} {'type':9} {'shapes':>6} {'error / allowed':>17}")
    for key in dict.fromkeys((row["op"], row["rung"], row["dtype"]) for row in rows):
        same = [row for row in rows if (row["op"], row["rung"], row["dtype"]) == key]
        worst = max(share(row) for row in same)
        bad = sum(not row["ok"] for row in same)
        print(f"{key[0]:30} {key[1]:16} {key[2]:9} {len(same):6} {worst:17.3f}"
              + f"   {bad} NOT OK" * bool(bad))


def share(row):
    """Of the error that is allowed; infinite where there is no number: NaN, or no result at all."""
    return float("inf") if row.get("err") is None else row["err"] / row["tol"]


def print_fast(rows):
    """A line for each rung and shape: milliseconds, the floor's share of them, PyTorch's."""
    if rows:
        print(f"\n{'operation, rung':48} {'ms':>8} {'of floor':>8} {'torch':>8} {'compiled':>8}")
    for row in rows:
        sizes = "×".join(word.split("=")[1] for word in row["shape"].split())
        cells = [f"{row[key]:8.3f}" if row.get(key) else f"{'':8}"
                 for key in ("ms", "of_floor", "torch_ms", "compile_ms")]
        print(f"{row['op']} {row['rung']} {sizes}"[:48].ljust(48), *cells)


def few(title, sentences, most=12):
    if sentences:
        print(f"\n{title}:", *sentences[:most], sep="\n  ")
    if len(sentences) > most:
        print(f"  … and {len(sentences) - most} more, in the report")
