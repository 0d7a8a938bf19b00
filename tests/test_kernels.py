"""Every rung of every ladder computes what rung 0 defines, and `use` chooses among them."""

import numpy as np
import pytest

from tinydiff import autograd as ag
from tinydiff.kernels import LADDERS, pick, use

RUNGS = [(ladder, rung) for ladder, module in LADDERS.items() for rung in module.LADDER]
FACTOR = {"winograd2": 4, "winograd4": 20}                # allowed error, plain arithmetic's is 1
each_rung = pytest.mark.parametrize(("ladder", "rung"), RUNGS)

#    ladder:   name: (x shape, w shape, stride, padding)
SHAPES = {"conv2d": {
    "3 x 3, same":         ((2, 5, 7, 3), (3, 3, 3, 4), 1, ((1, 1), (1, 1))),
    "1 x 1":               ((3, 5, 3, 2), (1, 1, 2, 3), 1, ((0, 0), (0, 0))),
    "1 x 1, one pixel":    ((1, 1, 1, 1), (1, 1, 1, 1), 1, ((0, 0), (0, 0))),
    "1 x 1, padded":       ((1, 3, 5, 2), (1, 1, 2, 2), 2, ((1, 2), (0, 1))),
    "halved":              ((2, 7, 5, 3), (3, 3, 3, 2), 2, ((1, 1), (1, 1))),
    "halved, rest unread": ((2, 8, 6, 3), (3, 3, 3, 2), 2, ((0, 0), (0, 0))),
    "halved, one-sided":   ((2, 6, 8, 3), (3, 3, 3, 2), 2, ((0, 1), (0, 1))),
    "stride 3, 2 x 2":     ((2, 8, 5, 2), (2, 2, 2, 3), 3, ((1, 0), (0, 2))),
    "5 x 3":               ((1, 7, 5, 2), (5, 3, 2, 3), 1, ((2, 2), (1, 1))),
    "as large as x":       ((2, 3, 5, 2), (3, 5, 2, 3), 1, ((0, 0), (0, 0))),
    "padding past K":      ((1, 3, 2, 2), (2, 2, 2, 2), 1, ((3, 2), (0, 4))),
    "no image":            ((0, 5, 5, 2), (3, 3, 2, 3), 1, ((1, 1), (1, 1))),
}}
WIDE = {"conv2d": ((2, 5, 7, 32), (3, 3, 32, 4), 1, ((1, 1), (1, 1)))}   # many terms a sum


def results(module, x, w, dy, stride, padding):
    """What a rung makes of the same arrays: y, dx, dw."""
    return {"forward": module.forward(x, w, stride, padding),
            "grad_input": module.grad_input(dy, w, x.shape, stride, padding),
            "grad_weight": module.grad_weight(dy, x, w.shape, stride, padding)}


def arrays(ladder, x_shape, w_shape, stride, padding, dtype=np.float64):
    """x, w and a dy of the shape that the formula gives."""
    rng = np.random.default_rng(0)
    sides = [(n + sum(p) - K) // stride + 1 for n, p, K in zip(x_shape[1:3], padding, w_shape)]
    return [rng.standard_normal(shape).astype(dtype)
            for shape in (x_shape, w_shape, (x_shape[0], *sides, w_shape[3]))]


def rung0(ladder):
    return next(iter(LADDERS[ladder].LADDER.values()))


def error(got, exact):
    """The largest distance; infinite for NaN and for another shape, so that neither ever passes."""
    if got.shape != exact.shape or not np.isfinite(got).all():
        return np.inf
    return np.abs(got.astype(np.float64) - exact).max(initial=0)


def test_every_ladder_has_shapes_and_starts_at_its_definition():
    assert SHAPES.keys() == WIDE.keys() == LADDERS.keys()
    for module in LADDERS.values():
        files = [rung.__name__.rpartition(".")[2] for rung in module.LADDER.values()]
        assert files == [f"rung{i}_{name}" for i, name in enumerate(module.LADDER)]
        assert module.DEFAULT in module.LADDER


@pytest.mark.parametrize(("ladder", "rung", "shape"), [
    (ladder, rung, shape) for ladder, rung in RUNGS for shape in SHAPES[ladder]])
def test_a_rung_agrees_with_rung_0(ladder, rung, shape):
    *_, stride, padding = case = SHAPES[ladder][shape]
    x, w, dy = arrays(ladder, *case)
    exact = results(rung0(ladder), x, w, dy, stride, padding)
    for name, got in results(LADDERS[ladder].LADDER[rung], x, w, dy, stride, padding).items():
        assert got.dtype == np.float64
        assert error(got, exact[name]) < 1e-12, name


LAYOUTS = {
    "Fortran order":   np.asfortranarray,
    "every second":    lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "backwards":       lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
    "axes exchanged":  lambda a: np.ascontiguousarray(a.swapaxes(0, 3)).swapaxes(0, 3),
    "a part of more":  lambda a: np.pad(a, 1, constant_values=np.nan)[1:-1, 1:-1, 1:-1, 1:-1],
    "read-only":       lambda a: np.broadcast_to(a, a.shape),
}


@each_rung
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_rung_reads_arrays_of_any_layout(ladder, rung, layout, stride):
    padding = ((0, 1), (1, 1))
    plain = arrays(ladder, (2, 6, 5, 3), (3, 3, 3, 2), stride, padding)
    other = [LAYOUTS[layout](a) for a in plain]
    module = LADDERS[ladder].LADDER[rung]
    exact = results(rung0(ladder), *plain, stride, padding)
    for name, got in results(module, *other, stride, padding).items():
        assert error(got, exact[name]) < 1e-12, name
    for a, b in zip(plain, other):
        np.testing.assert_array_equal(a, b)               # and leaves them as they were


@each_rung
def test_the_float32_error_is_at_most_twice_that_of_plain_arithmetic(ladder, rung):
    *_, stride, padding = case = WIDE[ladder]
    rounded = arrays(ladder, *case, dtype=np.float32)
    exact = results(rung0(ladder), *(a.astype(np.float64) for a in rounded), stride, padding)
    plain = results(rung0(ladder), *rounded, stride, padding)
    for name, got in results(LADDERS[ladder].LADDER[rung], *rounded, stride, padding).items():
        allowed = 2 if rung not in FACTOR else FACTOR[rung]
        assert got.dtype == np.float32
        assert 0 < error(got, exact[name]) <= allowed * error(plain[name], exact[name]), name


@pytest.mark.parametrize(("ladder", "rung"), [pair for pair in RUNGS if pair[1] != "loops"])
def test_a_batch_worked_on_in_parts_gives_each_image_its_own_result(ladder, rung):
    x, w, dy = arrays(ladder, (1, 64, 48, 80), (3, 3, 80, 1), 2, ((1, 1), (1, 1)))
    module = LADDERS[ladder].LADDER[rung]
    one = results(module, x, w, dy, 2, ((1, 1), (1, 1)))
    one["grad_weight"] = 5 * one["grad_weight"]
    five = results(module, x.repeat(5, axis=0), w, dy.repeat(5, axis=0), 2, ((1, 1), (1, 1)))
    for name, got in five.items():
        assert error(got, np.broadcast_to(one[name], got.shape)) < 1e-10, name


def test_nan_and_a_wrong_shape_never_pass():
    exact = np.ones(3)
    assert error(np.array([1, np.nan, 1]), exact) == np.inf
    assert error(np.ones((3, 1)), exact) == np.inf
    assert error(np.array([1, 1.5, 1]), exact) == 0.5


@each_rung
def test_nan_in_a_picture_reaches_the_result(ladder, rung):
    x, w, _ = arrays(ladder, (2, 5, 5, 2), (3, 3, 2, 2), 1, ((1, 1), (1, 1)))
    x[1, 2, 2, 0] = np.nan
    with np.errstate(invalid="ignore"):                   # NaN times a number
        y = LADDERS[ladder].LADDER[rung].forward(x, w, 1, ((1, 1), (1, 1)))
    assert np.isnan(y[1, 1:4, 1:4]).all()
    assert not np.isnan(y[0]).any()


@each_rung
def test_an_op_plays_back_on_the_rung_that_recorded(ladder, rung, monkeypatch):
    real, calls = LADDERS[ladder].LADDER[rung], []

    class Spy:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(real, name)

    monkeypatch.setitem(LADDERS[ladder].LADDER, rung, Spy())
    x, w = (ag.Tensor(np.ones((3, 3, 1, 1)), requires_grad=True) for _ in range(2))
    with use(**{ladder: rung}):
        y = ag.conv2d(x.reshape(1, 3, 3, 1), w)
    y.backward()
    assert calls == ["forward", "grad_input", "grad_weight"]
    np.testing.assert_array_equal(y.data, 9)


def test_use_ends_with_its_block_and_nests():
    ladder = LADDERS["conv2d"]
    default = ladder.LADDER[ladder.DEFAULT]
    with use(conv2d="loops"):
        assert pick("conv2d") is ladder.LADDER["loops"]
        with use(conv2d="im2col"):
            assert pick("conv2d") is ladder.LADDER["im2col"]
        with pytest.raises(ZeroDivisionError), use(conv2d="im2col"):
            1 / 0
        assert pick("conv2d") is ladder.LADDER["loops"]
    assert pick("conv2d") is default


@pytest.mark.parametrize(("chosen", "message"), [
    ({"conv3d": "loops"}, "no ladder 'conv3d'; there are conv2d"),
    ({"conv2d": "magic"}, "conv2d has no rung 'magic'; there are loops, im2col"),
])
def test_use_refuses_what_it_does_not_know(chosen, message):
    before = pick("conv2d")
    with pytest.raises(ValueError, match=message), use(conv2d="loops"), use(**chosen):
        pass
    assert pick("conv2d") is before
