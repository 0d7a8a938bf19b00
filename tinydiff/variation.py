"""Between prompts and between seeds: pictures on the way from one picture to another.

What is heard goes straight from one context to the other (along an arc, MNIST's largest step is a
tenth larger), all noise along the arc, on which it stays as long as noise is.  DDIM §5.3
"""

from copy import copy

import numpy as np

from tinydiff.asking import is_whole, refuse_unless
from tinydiff.backend import alongside
from tinydiff.diffusion import noise
from tinydiff.diffusion.editing import slerp
from tinydiff.upscale import Cascade


def between(run, first, last, n, *, seed=0, to_seed=None, **options):
    """n pictures on the way from one prompt to another, each from noise -> uint8 (n, H, W, C)

    The ends are `run.generate([first], seed=seed)` and `run.generate([last], seed=to_seed)`, where
    to_seed is seed unless given. Options as of `generate`. ValueError as there, and for n below 2.
    """
    return along(run, last, n, to_seed).generate([first], n=n, seed=seed, **options)


def along(run, last, n, to_seed=None):
    """A copy of a Run whose n pictures of a prompt and seed lead to `last` and to_seed: `between`.
    """
    refuse_unless((n, is_whole(n, 2), "at least 2 pictures on the way"),
                  (last, isinstance(last, str), "a prompt to end with"),
                  (to_seed, to_seed is None or (is_whole(to_seed, 0) and to_seed < 2**64),
                   "to_seed from 0 to 2⁶⁴ − 1"))
    way, share = copy(run), np.linspace(0, 1, n, dtype=np.float32)
    if isinstance(run, Cascade):
        way.small, way.large = (along(part, last, n, to_seed) for part in (run.small, run.large))
        return way

    def heard(prompts, n):
        first, end = run.contexts([*prompts, last])                   # (L, D) each
        to_last = alongside(share[:, None, None], first)
        return (1 - to_last) * first + to_last * end                  # (n, L, D)

    def normal(seed, index, *address, purpose):
        here, there = (noise.batch(s, np.zeros_like(index), *address, purpose=purpose,
                                   like=run.unet.home)
                       for s in (seed, seed if to_seed is None else to_seed))
        return here if to_seed in (None, seed) else slerp(here, there, share[index])

    way.heard, way.normal = heard, normal
    return way
