"""Functions of vectors that the machine has no instruction for, and loops over many of them."""

from . import isa
from .vector import (
    divide,
    fma,
    higher,
    load,
    load_part,
    lower,
    nearest,
    power_of_two,
    splat,
    store,
    store_part,
)

WIDTH = isa.host().width


def at(address, index):
    """The address of float number `index`."""
    return address + 4 * index


def exp(x):
    """eˣ = 2ⁿ · eᶠ with n whole and |f| ≤ ½ ln 2; eᶠ by a polynomial, to 1 unit in the last place.

    Below −87 it is 10⁻³⁸, above 88 it is 10³⁸; what is no number stays none.
    """
    x = higher(splat(-87.0), lower(splat(88.0), x))
    n = nearest(x * splat(1.4426950408889634))
    f = fma(n, splat(-0.693359375), x)                    # ln 2 in two parts, the first exact
    f = fma(n, splat(2.12194440e-4), f)
    p = fma(splat(0.0013814467), f, splat(0.0083687804))  # near 1/720 and 1/120: Taylor's numbers,
    p = fma(p, f, splat(0.041668394))                     # moved so that the largest error on
    p = fma(p, f, splat(0.1666652))                       # |f| ≤ ½ ln 2 is smallest
    p = fma(p, f, splat(0.49999993))
    p = fma(p, f, splat(1.0))
    p = fma(p, f, splat(1.0))
    return p * power_of_two(n)


def sigmoid(x):
    return divide(splat(1.0), splat(1.0) + exp(splat(0.0) - x))


def silu(x):
    return divide(x, splat(1.0) + exp(splat(0.0) - x))


def gelu(x):
    """x · Φ(x) = max(x, 0) − |x| Φ(−|x|): exact to a few units in the last place, also far out."""
    s = higher(x, splat(0.0) - x)
    return higher(splat(0.0), x) - s * tail(s, exp(splat(-0.5) * s * s))


def gelu_slope(x):
    """d gelu/dx = Φ(x) + x φ(x), where Φ(x) is Φ(−|x|), or 1 less that where x > 0."""
    s = higher(x, splat(0.0) - x)
    e = exp(splat(-0.5) * s * s)
    below = tail(s, e)
    right = higher(splat(0.0), lower(splat(1.0), x * splat(1e30)))         # 1 where x > 0, else 0
    near = higher(splat(-13.0), lower(splat(13.0), x))    # beyond, x φ(x) is nothing
    return fma(right, splat(1.0) - below - below, below) + splat(0.3989422804014327) * near * e


def tail(s, e):
    """Φ(−s), s ≥ 0, where e = e^(−s²/2).

    ½ e P(t) with t = 1 / (1 + 0.37 s / √2), where P, through its nine numbers, is off by at most
    2e-8.  The form is Hastings' (Abramowitz & Stegun 7.1.26).
    """
    t = divide(splat(1.0), fma(s, splat(0.2616295090390226), splat(1.0)))
    p = fma(splat(0.0619226091), t, splat(-0.303270693))
    p = fma(p, t, splat(0.486837103))
    p = fma(p, t, splat(-0.285306534))
    p = fma(p, t, splat(0.310798352))
    p = fma(p, t, splat(0.106521875))
    p = fma(p, t, splat(0.206253636))
    p = fma(p, t, splat(0.207429894))
    p = fma(p, t, splat(0.208813741))
    return splat(0.5) * p * t * e


def zero(x, n):
    """x[0 … n − 1] = 0"""
    for i in range(0, n - WIDTH + 1, WIDTH):
        store(x, i, splat(0.0))
    if n % WIDTH:
        store_part(x, n - n % WIDTH, splat(0.0), n % WIDTH)


def copy(x, y, n):
    """y[0 … n − 1] = x[0 … n − 1]"""
    for i in range(0, n - WIDTH + 1, WIDTH):
        store(y, i, load(x, i))
    if n % WIDTH:
        store_part(y, n - n % WIDTH, load_part(x, n - n % WIDTH, n % WIDTH), n % WIDTH)
