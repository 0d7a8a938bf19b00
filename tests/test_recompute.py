"""recomputed: the numbers and gradients of the function itself, for less memory."""

import tracemalloc

import numpy as np
import pytest

from tinydiff.autograd import Tensor, gradcheck, mul, no_grad, recomputed, silu, sin
from tinydiff.models.blocks import AdaptiveResBlock, ResBlock


def plainly(f, *args):
    return f(*args)


class Counted:
    """A function that knows how often it ran."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, *args):
        self.calls += 1
        return self.f(*args)


def gradients(run, blocks, x, emb, dy):
    """All the gradients of a chain of blocks, which share one emb and some parameters."""
    x, emb = (Tensor(a, requires_grad=True) for a in (x, emb))
    h = x
    for block in blocks:
        h = run(block, h, emb)
    for block in blocks:
        for p in block.parameters().values():
            p.grad = None
    h.backward(dy)
    return [h.data, x.grad, emb.grad, *(p.grad for b in blocks for p in b.parameters().values())]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_chain_of_blocks_has_the_same_gradients_bit_for_bit(dtype, rng):
    blocks = [ResBlock(8, 8, 6, groups=4, rng=rng).astype(dtype) for _ in range(3)]
    for block in blocks:
        for p in block.parameters().values():
            p.data += (0.1 * rng.standard_normal(p.shape)).astype(dtype)
    x, dy = rng.standard_normal((2, 3, 6, 5, 8)).astype(dtype)
    emb = rng.standard_normal((3, 6)).astype(dtype)
    for a, b in zip(gradients(plainly, blocks, x, emb, dy),
                    gradients(recomputed, blocks, x, emb, dy), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_agree_with_differences_also_where_an_argument_is_used_twice_or_stretched(rng):
    x, y = rng.standard_normal((3, 4)), rng.standard_normal(4)
    f = lambda x, y: mul(sin(x), y) * x + y
    assert gradcheck(lambda x, y: recomputed(f, x, recomputed(silu, y)), x, y) < 1e-7


def test_the_function_runs_once_forward_and_once_backward(rng):
    f, x = Counted(silu), Tensor(rng.standard_normal(3), requires_grad=True)
    y = recomputed(f, x)
    assert f.calls == 1
    y.backward(np.ones(3))
    assert f.calls == 2


def test_what_is_nested_is_played_back_inside_out(rng):
    x, w = (Tensor(rng.standard_normal(3), requires_grad=True) for _ in range(2))
    inner = Counted(lambda x: silu(x) * w)
    outer = Counted(lambda x: sin(recomputed(inner, x)))
    recomputed(outer, x).backward(np.ones(3))
    assert (outer.calls, inner.calls) == (2, 3)
    found, x.grad, w.grad = (x.grad, w.grad), None, None
    sin(silu(x) * w).backward(np.ones(3))
    np.testing.assert_array_equal(found, (x.grad, w.grad))


def test_parameters_get_their_gradient_though_no_argument_wants_one(rng):
    w, x = Tensor(rng.standard_normal(3), requires_grad=True), Tensor(rng.standard_normal(3))
    y = recomputed(lambda x: x * w, x)
    assert y.requires_grad
    y.backward(np.ones(3))
    np.testing.assert_array_equal(w.grad, x.data)
    assert x.grad is None


def test_where_nothing_wants_a_gradient_nothing_is_remembered(rng):
    x = Tensor(rng.standard_normal(3))
    assert not recomputed(silu, x).requires_grad
    x.requires_grad = True
    with no_grad():
        assert not recomputed(silu, x).requires_grad


def test_an_argument_that_was_not_used_gets_zeros_and_constants_pass_through(rng):
    x, unused = (Tensor(rng.standard_normal(3), requires_grad=True) for _ in range(2))
    f = lambda x, _, n, g, nothing: g(x) * n if nothing is None else x
    recomputed(f, x, unused, 2.5, silu, None).backward(np.ones(3))
    found, x.grad = x.grad, None
    (silu(x) * 2.5).backward(np.ones(3))
    np.testing.assert_array_equal(found, x.grad)
    np.testing.assert_array_equal(unused.grad, np.zeros(3))


def test_backward_may_stand_where_nothing_is_recorded(rng):
    x = Tensor(rng.standard_normal(3), requires_grad=True)
    y = recomputed(sin, x)
    with no_grad():
        y.backward(np.ones(3))
        assert not sin(x).requires_grad               # still so
    np.testing.assert_allclose(x.grad, np.cos(x.data), rtol=1e-12)


def test_recording_goes_on_as_before_when_the_second_run_fails(rng):
    def once():
        raise KeyboardInterrupt

    x, second = Tensor(rng.standard_normal(3), requires_grad=True), []
    y = recomputed(lambda x: once() if second else silu(x), x)
    second.append(True)
    with no_grad():
        with pytest.raises(KeyboardInterrupt):
            y.backward(np.ones(3))
        assert not silu(x).requires_grad


def test_it_is_played_back_once(rng):
    y = recomputed(silu, Tensor(rng.standard_normal(3), requires_grad=True))
    y.backward(np.ones(3))
    with pytest.raises(RuntimeError, match="played back"):
        y.backward(np.ones(3))


def kept(run, x):
    """Bytes in use once a chain of eight blocks has been computed, with all that it keeps."""
    block = AdaptiveResBlock(4, 4, 2, groups=4, rng=np.random.default_rng(0)).astype(np.float64)
    emb, h = Tensor(np.ones((1, 2))), Tensor(x, requires_grad=True)
    run(block, h, emb)                                    # the kernels are imported before
    tracemalloc.start()
    for _ in range(8):
        h = run(block, h, emb)
    in_use, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return in_use / x.nbytes


def test_a_chain_keeps_its_results_and_nothing_else(rng):
    x = rng.standard_normal((1, 32, 32, 4))
    assert 8 <= kept(recomputed, x) < 9 < 40 < kept(plainly, x)
