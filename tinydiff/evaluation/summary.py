"""What `evaluate` found, as a table to be read."""


def table(found):
    """The dict of `evaluate` as text: a row a number, and below it what that rests on."""
    real, copies = found["real"] or {}, found["copies"] or {}
    rows = [("", "drawn", "95 %", "real"), *accuracies("prompt accuracy", found),
            *((found["unseen"] and accuracies("unseen combinations", found["unseen"])) or ()),
            ("Fréchet distance", found["frechet"], found["frechet_ci95"], found["frechet_real"])]
    rows += [(name, found[key], None, real.get(key)) for name, key in (
        ("  for endless pictures", "frechet_extrapolated"), ("precision", "precision"),
        ("recall", "recall"), ("coverage", "coverage"))]
    rows += [("distance from the nearest learned", copies.get("ratio"), None, copies and 1.0),
             ("bits a number, at most", found["nll_bits_per_dim"], None, None)]
    if sweep := found["guidance_sweep"]:
        rows += [("guidance", "accuracy", "95 %", "recall")]
        rows += [(f"  {turn['guidance']:g}", *map(turn.get, ("prompt_accuracy", "ci95", "recall")))
                 for turn in sweep]
    if gap := found["loss_gap"]:
        rows += [("loss at t", "model", "", "least")]
        rows += [(f"  {t:g}", ours, None, least) for t, ours, least in
                 zip(gap["times"], gap["loss"], gap["bayes"])]
    notes = filter(None, (found["judge"], found["real_pictures"], found["nll_note"]))
    return "\n".join([
        f"{found['recipe']}: {found['n']} pictures of seed {found['seed']}, {found['steps']} steps "
        f"of {found['sampler']}, guidance {found['guidance']:g}",
        *(f"{name:<36}{said(a):>9}{said(b):>18}{said(c):>10}".rstrip() for name, a, b, c in rows),
        *(f"{note}." for note in notes)])


def accuracies(name, answered):
    """A row for all questions and one for each kind."""
    parts = [(f"  {kind}", part) for kind, part in (answered["by_kind"] or {}).items()]
    return [(kind, part["prompt_accuracy"], part["ci95"], None)
            for kind, part in [(name, answered), *parts]]


def said(value):
    """A number, an interval or a word as text, and nothing for None."""
    if isinstance(value, list):
        return " – ".join(map(said, value))
    return f"{value:.4g}" if isinstance(value, float) else value or ""
