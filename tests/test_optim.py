"""AdamW, Muon, their flat buffer, EMA, clipping and the learning rate, against the textbook."""

import numpy as np
import pytest

from tinydiff.autograd import Tensor
from tinydiff.optim import EMA, AdamW, Flat, Muon, clip_grad, learning_rate, orthogonal


def parameters(rng, dtype=np.float64):
    shapes = {"w": (3, 4), "b": (4,), "conv.w": (3, 3, 2, 5), "scale": ()}
    return {name: Tensor(np.asarray(rng.standard_normal(shape), dtype), requires_grad=True)
            for name, shape in shapes.items()}


def textbook_adamw(w, grads, *, lr, beta1, beta2, eps, decay):
    """Loshchilov & Hutter, Alg. 2, one parameter at a time, nothing shared with ours."""
    m = v = np.zeros_like(w)
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        w = w - lr * (m_hat / (np.sqrt(v_hat) + eps) + decay * w)
    return w


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_the_textbooks_for_each_parameter(decay, rng):
    ours = parameters(rng)
    start = {name: p.data.copy() for name, p in ours.items()}
    grads = {name: rng.standard_normal((20, *p.shape)) for name, p in ours.items()}
    options = dict(beta1=0.8, beta2=0.95, eps=1e-3)
    optimizer = AdamW(Flat(ours), decay=decay, **options)
    for step in range(1, 21):
        for name, p in ours.items():
            p.grad += grads[name][step - 1]
        optimizer.step(0.01, step)
    for name, p in ours.items():
        expected = textbook_adamw(start[name], grads[name], lr=0.01, **options,
                                  decay=decay if p.ndim > 1 else 0.0)
        np.testing.assert_allclose(p.data, expected, rtol=1e-12)


def test_the_first_step_by_hand():
    w = Tensor(np.array([[1.0, -2.0]]), requires_grad=True)
    b = Tensor(np.array([1.0]), requires_grad=True)
    optimizer = AdamW(Flat({"w": w, "b": b}), eps=0.0, decay=0.5)
    w.grad[...] = [[3.0, -0.001]]
    b.grad[...] = 7.0
    optimizer.step(0.1, 1)                # any first gradient moves by lr against its sign
    np.testing.assert_allclose(w.data, [[1 - 0.05 - 0.1, -2 + 0.1 + 0.1]])
    np.testing.assert_allclose(b.data, [1 - 0.1])         # a bias does not decay


def test_a_step_zeroes_the_gradient_and_keeps_float32(rng):
    ours = parameters(rng, np.float32)
    flat = Flat(ours)
    flat.grad += 1
    AdamW(flat, decay=0.1).step(0.1, 1)
    assert not flat.grad.any()
    assert not ours["w"].grad.any()
    assert flat.data.dtype == flat.grad.dtype == ours["w"].dtype == np.float32


def test_parameters_and_gradients_are_views_of_one_buffer(rng):
    ours = parameters(rng)
    start = {name: p.data.copy() for name, p in ours.items()}
    flat = Flat(ours)
    assert flat.data.shape == flat.grad.shape == (12 + 4 + 90 + 1,)
    for name, p in ours.items():
        np.testing.assert_array_equal(p.data, start[name])
        assert np.shares_memory(p.data, flat.data)
        assert np.shares_memory(p.grad, flat.grad)
    (ours["b"] * 3).backward(np.ones(4))
    np.testing.assert_array_equal(flat.grad, np.repeat([0, 3, 0], [102, 4, 1]))   # weights first
    assert flat.weights == 102
    flat.data[...] = np.arange(107)
    np.testing.assert_array_equal(ours["b"].data, [102, 103, 104, 105])
    assert ours["scale"].data == 106
    np.testing.assert_array_equal(flat.views(flat.data)["w"], ours["w"].data)


def polynomial(s):
    """What five steps of Newton and Schulz make of a singular value."""
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (9, 2), (1, 4), (7, 1)])
def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values(shape, rng):
    G = rng.standard_normal(shape)
    U, S, Vt = np.linalg.svd(G, full_matrices=False)
    expected = (U * polynomial(S / np.linalg.norm(S))) @ Vt
    np.testing.assert_allclose(orthogonal(G), expected, atol=1e-6)
    np.testing.assert_allclose(orthogonal(1e3 * G), expected, atol=1e-6)      # however long
    levelled = np.linalg.svd(orthogonal(G), compute_uv=False)
    assert (levelled[S > 0.02 * np.linalg.norm(S)] > 0.65).all()
    assert (levelled < 1.25).all()


def test_orthogonal_takes_a_gradient_that_is_zero_or_of_low_rank_in_float32(rng):
    assert not orthogonal(np.zeros((3, 4), np.float32)).any()
    low = np.outer(rng.standard_normal(60), rng.standard_normal(40)).astype(np.float32)
    levelled = np.linalg.svd(orthogonal(low), compute_uv=False)
    assert levelled[0] == pytest.approx(polynomial(1.0), abs=1e-4)
    assert (levelled[1:] < 0.01).all()                    # what is not there is not made up


def test_muon_moves_matrices_by_the_orthogonal_one_and_all_else_as_adamw(rng):
    ours, theirs = parameters(np.random.default_rng(3)), parameters(np.random.default_rng(3))
    start = {name: p.data.copy() for name, p in ours.items()}
    ema, m = EMA(Flat(ours), decay=0.5), {}
    muon, adamw = Muon(ema.flat, decay=0.1, ema=ema), AdamW(Flat(theirs), decay=0.1)
    mean = {name: w.copy() for name, w in start.items()}
    for step in range(1, 6):
        for name, p in ours.items():
            g = rng.standard_normal(p.shape)
            p.grad[...], theirs[name].grad[...] = g, g
            m[name] = 0.9 * m.get(name, 0) + 0.1 * g
        muon.step(0.01, step)
        adamw.step(0.01, step)
        for name, size in (("w", 4), ("conv.w", 18)):     # (3, 4), (3·3·2, 5)
            G = m[name].reshape(-1, m[name].shape[-1])
            way = 0.2 * size**0.5 * orthogonal(G).reshape(m[name].shape)
            start[name] -= 0.01 * (way + 0.1 * start[name])
        d = min(0.5, (1 + step) / (10 + step))
        for name, p in ours.items():
            mean[name] += (1 - d) * (p.data - mean[name])
    for name, p in ours.items():
        expected = start[name] if name.endswith("w") else theirs[name].data
        np.testing.assert_allclose(p.data, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ema.flat.views(ema.data)[name], mean[name], rtol=1e-9,
                                   atol=1e-12)
    assert not ema.flat.grad.any()


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_ema_warms_up_and_then_decays(decay, rng):
    flat = Flat(parameters(rng))
    ema = EMA(flat, decay=decay)
    expected = flat.data.copy()
    for n in range(1, 41):
        flat.data[...] = rng.standard_normal(flat.data.size)
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * flat.data
        ema.update(n)
    np.testing.assert_allclose(ema.data, expected, rtol=1e-11, atol=1e-13)
    assert not np.shares_memory(ema.data, flat.data)


def test_a_step_takes_the_ema_along_as_a_later_update_would(rng):
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
        results = []
        for together in (True, False):
            flat = Flat(parameters(np.random.default_rng(3), dtype))
            ema = EMA(flat, decay=0.9)
            optimizer = AdamW(flat, decay=0.1, ema=ema if together else None)
            for step in range(1, 6):
                flat.grad[...] = np.random.default_rng(step).standard_normal(107)
                optimizer.step(0.01, step)
                if not together:
                    ema.update(step)
            results.append((ema.data, flat.data))
        for ours, theirs in zip(*results):
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_clipping_shortens_what_is_too_long_and_nothing_else(rng):
    flat = Flat(parameters(rng))
    g = rng.standard_normal(flat.grad.size)
    g *= 5 / np.linalg.norm(g)
    flat.grad[...] = g
    assert clip_grad(flat, 6.0) == pytest.approx(5)
    np.testing.assert_array_equal(flat.grad, g)
    assert clip_grad(flat, 2.0) == pytest.approx(5)       # the norm before
    np.testing.assert_allclose(flat.grad, g * 2 / 5)
    flat.grad[0] = np.nan
    assert np.isnan(clip_grad(flat, 2.0))                 # for the caller to stop at


def test_the_learning_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    rate = [learning_rate(step, lr=0.2, warmup=10, steps=110) for step in range(1, 111)]
    np.testing.assert_allclose(rate[:10], 0.02 * np.arange(1, 11))
    assert rate[9] == max(rate) == 0.2                    # lr, where the warm-up ends
    assert rate[59] == pytest.approx(0.1)                 # half way down
    assert rate[34] == pytest.approx(0.2 * (0.5 + 0.5**1.5))          # cos 45°
    assert rate[-1] == 0
    assert (np.diff(rate[9:]) < 0).all()


def test_a_learning_rate_without_an_end_stays_where_the_warm_up_brought_it():
    rate = [learning_rate(step, lr=0.2, warmup=10, steps=None) for step in range(1, 50)]
    np.testing.assert_allclose(rate[:10], 0.02 * np.arange(1, 11))
    assert set(rate[9:]) == {0.2}


def test_the_learning_rate_without_a_warm_up_starts_at_the_top_of_the_cosine():
    assert learning_rate(1, lr=1.0, warmup=0, steps=2) == pytest.approx(0.5)
    assert learning_rate(3, lr=1.0, warmup=3, steps=3) == 1.0
