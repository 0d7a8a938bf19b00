"""A fused convolution is its parts one after the other, in float64: norm, SiLU, windows, sums."""

import numpy as np
import pytest
from conv2d_helpers import COMPILED, FACTOR, SAME, error, fast
from hypothesis import given, settings, strategies as st
from tinydiff_kernels.conv2d import LADDER

pytestmark = pytest.mark.skipif(not COMPILED, reason="needs Numba")
each_rung = pytest.mark.parametrize("rung", COMPILED)

if COMPILED:
    from tinydiff_kernels.conv2d import tiles
    from tinydiff_kernels.conv2d.rung2_numba import SEAM
else:
    SEAM = 16


@pytest.fixture(params=["weights stay", "weights pass by"])
def weights(request, monkeypatch):
    """As they are, and as if all were large."""
    if request.param == "weights pass by":
        monkeypatch.setattr(tiles, "LARGE", 0)


def silu(x):
    return x / (1 + np.exp(-x))


def activated(xs, scale, shift):
    """The inputs side by side, and silu(x · scale + shift) of them where these are given."""
    x = np.concatenate(xs, axis=3)
    return x if scale is None else silu(x * scale[:, None, None] + shift[:, None, None])


def forward(xs, w, *, scale=None, shift=None, base=None, add=None):
    y = fast.forward(activated(xs, scale, shift), w, 1, SAME)
    if base is not None:
        y = y + (base if base.ndim == 1 else base[:, None, None])
    return y if add is None else y + add


def grad_input(dy, w, *, split=None):
    x_shape = (*dy.shape[:3], w.shape[2])
    dx = fast.grad_input(dy, w, x_shape, 1, SAME)
    return [dx] if split is None else [dx[..., :split], dx[..., split:]]


def grad_weight(dy, xs, *, scale=None, shift=None):
    x = activated(xs, scale, shift)
    return fast.grad_weight(dy, x, (3, 3, x.shape[3], dy.shape[3]), 1, SAME)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def picture(rng, N, H, W, C1, C2, O):
    """xs, one or two; w and dy."""
    xs = [normal(rng, N, H, W, C) for C in (C1, C2) if C]
    return xs, normal(rng, 3, 3, C1 + C2, O), normal(rng, N, H, W, O)


def each(change, value):
    """The value changed, if it is an array or a list of arrays."""
    if type(value) is list:
        return [change(a) for a in value]
    return change(value) if type(value) is np.ndarray else value


def check(rung, got, definition, *args, **options):
    """got as near to the definition in float64 as the definition in float32, times the factor.

    Where few are summed chance decides: one unit of the largest sum's last place is granted, or of
    the largest product, as tiles also hold weights that fall outside the picture.
    """
    def defined(change):
        found = definition(*[each(change, a) for a in args],
                           **{name: each(change, a) for name, a in options.items()})
        return found if type(found) is list else [found]

    with np.errstate(under="ignore"):
        exact, plain, size = map(defined, (wide, np.asarray, np.abs))
    for y, y_plain, y_exact in zip(got if type(got) is list else [got], plain, exact, strict=True):
        unit = 2.0**-23 * max(largest(size), largest(args[0]) * largest(args[1]))
        assert y.dtype == np.float32
        assert y.flags.c_contiguous
        assert error(y, y_exact) <= FACTOR.get(rung, 2) * max(error(y_plain, y_exact), unit)


def largest(value):
    return max(np.abs(a).max(initial=0) for a in (value if type(value) is list else [value]))


def wide(a):
    return a.astype(np.float64)


SIZES = {                                                 # (N, H, W, C1, C2, O)
    "one pixel": (1, 1, 1, 1, 0, 1), "odd": (3, 7, 9, 17, 0, 33), "one row": (2, 1, 13, 8, 0, 40),
    "narrow": (2, 21, 2, 3, 0, 5), "large": (2, 33, 30, 24, 0, 24), "many": (1, 6, 6, 256, 0, 70),
    "two inputs": (2, 9, 6, SEAM, 5, 24), "two, many": (1, 8, 11, 3 * SEAM, 2 * SEAM, 40),
    "two, a narrow one": (3, 5, 5, 2 * SEAM, 1, 17), "no picture": (0, 4, 4, 16, 0, 16)}
EXTRAS = [{}, {"norm"}, {"bias"}, {"base"}, {"add"}, {"norm", "bias", "add"},
          {"norm", "base", "add"}]
each_size = pytest.mark.parametrize("size", SIZES)


def extras(rng, names, N, H, W, C, O):
    """The options that `names` ask for."""
    found = {}
    if "norm" in names:
        found |= {"scale": normal(rng, N, C), "shift": normal(rng, N, C)}
    if "bias" in names:
        found["base"] = normal(rng, O)
    if "base" in names:
        found["base"] = normal(rng, N, O)
    if "add" in names:
        found["add"] = normal(rng, N, H, W, O)
    return found


@each_rung
@each_size
@pytest.mark.parametrize("names", EXTRAS, ids=lambda names: " and ".join(sorted(names)) or "bare")
def test_forward_takes_norm_bias_time_and_residual_along(rng, rung, size, names, weights):
    N, H, W, C1, C2, O = SIZES[size]
    xs, w, _ = picture(rng, *SIZES[size])
    options = extras(rng, names, N, H, W, C1 + C2, O)
    check(rung, LADDER[rung].fused(xs, w, **options), forward, xs, w, **options)


@each_rung
@each_size
def test_the_gradient_of_the_input_comes_in_the_parts_that_went_in(rng, rung, size, weights):
    _, _, _, C1, C2, _ = SIZES[size]
    _, w, dy = picture(rng, *SIZES[size])
    split = C1 if C2 else None
    got = LADDER[rung].fused_grad_input(dy, w, split=split)
    check(rung, got, grad_input, dy, w, split=split)


@each_rung
@each_size
@pytest.mark.parametrize("names", [{}, {"norm"}], ids=["bare", "norm"])
def test_the_gradient_of_the_weights_sees_the_activation_again(rng, rung, size, names):
    N, H, W, C1, C2, O = SIZES[size]
    xs, _, dy = picture(rng, *SIZES[size])
    options = extras(rng, names, N, H, W, C1 + C2, O)
    got = LADDER[rung].fused_grad_weight(dy, xs, **options)
    check(rung, got, grad_weight, dy, xs, **options)


@each_rung
@given(N=st.integers(1, 3), H=st.integers(1, 14), W=st.integers(1, 14), vectors=st.integers(1, 2),
       C2=st.integers(0, 20), O=st.integers(1, 40), seed=st.integers(0, 9),
       names=st.sets(st.sampled_from(["norm", "bias", "add"])))
@settings(max_examples=25)
def test_any_size_with_one_input_or_two(rung, N, H, W, vectors, C2, O, seed, names):
    rng = np.random.default_rng(seed)
    C1 = vectors * SEAM
    xs, w, dy = picture(rng, N, H, W, C1, C2, O)
    options = extras(rng, names, N, H, W, C1 + C2, O)
    check(rung, LADDER[rung].fused(xs, w, **options), forward, xs, w, **options)
    split = C1 if C2 else None
    check(rung, LADDER[rung].fused_grad_input(dy, w, split=split), grad_input, dy, w, split=split)
    norm = {name: options[name] for name in ("scale", "shift") if name in options}
    check(rung, LADDER[rung].fused_grad_weight(dy, xs, **norm), grad_weight, dy, xs, **norm)


@pytest.mark.parametrize("rung", ["winograd2", "winograd4"])
def test_large_weights_pass_by_and_leave_nothing_behind(rng, rung):
    """Tiles that fill no block, channels that fill no piece, one input and two."""
    for N, S, C1, C2, O in ((2, 9, 80, 200, 130), (1, 4, 48, 0, 700)):
        xs, w, dy = picture(rng, N, S, S + 1, C1, C2, O)
        assert tiles.passes(4, xs[0], w)
        before = len(tiles._kept)
        options = extras(rng, {"norm", "base", "add"}, N, S, S + 1, C1 + C2, O)
        got = LADDER[rung].fused(xs, w, keep=True, **options)
        check(rung, got, forward, xs, w, **options)
        check(rung, LADDER[rung].fused_grad_input(dy, w), grad_input, dy, w)
        assert len(tiles._kept) == before


@each_rung
def test_weights_that_are_kept_are_never_stale(rng, rung):
    """keep: what is made of w may be kept; a weight that changed counts as changed."""
    xs, w, _ = picture(rng, 2, 9, 7, 24, 0, 40)
    for where in [(0, 0, 0, 0), (2, 2, 23, 39), (1, 1, 16, 31), None]:
        check(rung, LADDER[rung].fused(xs, w, keep=True), forward, xs, w)
        check(rung, LADDER[rung].fused(xs, w, keep=True), forward, xs, w)
        if where:
            w[where] += 1
        else:
            w[...] = normal(rng, *w.shape)
    check(rung, LADDER[rung].fused(xs, w, keep=True), forward, xs, w)
    for _ in range(20):                                   # others that may come to lie there
        w = normal(rng, 3, 3, 24, 40)
        check(rung, LADDER[rung].fused(xs, w, keep=True), forward, xs, w)
        del w


@each_rung
@pytest.mark.parametrize("guilty", ["x", "skip", "scale", "shift", "base", "add", "w"])
def test_what_is_no_number_comes_out_as_none(rng, rung, guilty, weights):
    xs, w, _ = picture(rng, 2, 8, 8, SEAM, 3, 5)
    options = extras(rng, {"norm", "base", "add"}, 2, 8, 8, SEAM + 3, 5)
    everything = {"x": xs[0], "skip": xs[1], "w": w, **options}
    array = everything[guilty]
    array[(1,) * array.ndim] = np.nan
    with np.errstate(invalid="ignore"):
        exact = forward(xs, w, **options)
        got = LADDER[rung].fused(xs, w, **options)
    assert np.isnan(exact).any()
    assert np.isnan(got[np.isnan(exact)]).all()
    if guilty != "w":
        assert np.isfinite(got[0]).all()


@each_rung
def test_weights_and_what_is_added_may_have_any_layout(rng, rung, weights):
    xs, w, dy = picture(rng, 2, 9, 7, SEAM, 5, 24)
    options = extras(rng, {"norm", "base", "add"}, 2, 9, 7, SEAM + 5, 24)
    turned = {name: np.asfortranarray(a) for name, a in options.items()}
    other = np.asfortranarray(w)
    exact = LADDER[rung].fused(xs, w, **options)
    for keep in (False, True):
        np.testing.assert_array_equal(LADDER[rung].fused(xs, other, keep=keep, **turned), exact)
    np.testing.assert_array_equal(LADDER[rung].fused_grad_input(dy, other)[0],
                                  LADDER[rung].fused_grad_input(dy, w)[0])
