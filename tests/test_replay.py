"""Work that is recorded once and replayed, drawing above all: the answers are those of the work.

On the stand-in for CuPy, whose streams record and whose graphs are launched (stand_in_graph.py).
"""

from functools import partial

import numpy as np
import pytest
from story_helpers import few_digits, randomised, tiny

from tinydiff.backend import to_host
from tinydiff.kernels import pick, use
from tinydiff.replay import KEEP, WARM, Replayed, one_by_one
from tinydiff.runs import training_run
from tinydiff.train import Training

SEVEN, TWO = "a handwritten seven", "a handwritten two"


def test_each_set_of_shapes_has_a_graph_and_the_oldest_makes_room(cupy):
    double = Replayed(lambda x: [x + x], like=cupy.ones(1))
    for _ in range(WARM + 2):
        for n in range(1, KEEP + 1):
            [y] = double(np.full(n, 3.0))
            np.testing.assert_array_equal(to_host(y), np.full(n, 6.0))
    assert len(double.recordings) == KEEP
    for _ in range(WARM + 1):
        double(np.ones(9))
    assert [[*shape] for (shape, _), *_ in double.recordings] == [[2], [3], [4], [9]]


def test_an_answer_is_a_copy_that_stays(cupy):
    double = Replayed(lambda x: [x + x], like=cupy.ones(1))
    answers = [double(np.full(3, float(n)))[0] for n in range(6)]
    for n, y in enumerate(answers):
        np.testing.assert_array_equal(to_host(y), np.full(3, 2.0 * n))


def test_other_rungs_in_use_are_another_graph(cupy):
    chosen = Replayed(lambda x: [x + pick("optimizer", x).__name__.endswith("fused")],
                      like=cupy.ones(1))
    for _ in range(WARM + 2):
        found = [to_host(chosen(np.zeros(1))[0])[0]]
        with use(optimizer="fused"):
            found.append(to_host(chosen(np.zeros(1))[0])[0])
        assert found == [0, 1]


def test_nothing_is_done_while_it_is_recorded(cupy):
    count, x = cupy.zeros(1), cupy.ones(1)

    def work(x):
        count[...] += x
        return [count * 10]

    again = Replayed(work, like=x)
    assert [to_host(again(x)[0])[0] for _ in range(5)] == [10, 20, 30, 40, 50]


# Drawing


def alive(seed=2, **tables):
    """A Run on the GPU of weights that all matter."""
    training = Training(tiny(**tables), few_digits())
    randomised(training.model, seed)
    training.ema.data[...] = training.flat.data
    return training_run(training, "alive").to("cuda")


@pytest.mark.parametrize("tables", [{}, {"model": {"predicts": "edm", "layout": 2}}])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "dpmpp_2m"])
def test_replayed_drawing_is_drawing(sampler, tables, cupy):
    run = alive(**tables)
    for size in (None, (16, 8)):
        draw = partial(run.generate, [SEVEN, TWO], n=2, seed=7, guidance=2.0, steps=6,
                       sampler=sampler, size=size, batch=3)
        launches = {graph: graph.launches for graph in cupy.stand_in.stand_in_graph.graphs}
        with one_by_one():
            expected = draw()
        assert launches == {graph: graph.launches for graph in launches}
        np.testing.assert_array_equal(draw(), expected)
        assert expected.std() > 10
    assert sum(graph.launches for graph in cupy.stand_in.stand_in_graph.graphs) > 8


def test_enlarging_is_replayed_too(cupy, rng):
    run = alive(upscale={"factor": 2})
    small = rng.integers(256, size=(4, 4, 1), dtype=np.uint8)
    with one_by_one():
        expected = run.generate([SEVEN], init=small, seed=3, n=2)
    np.testing.assert_array_equal(run.generate([SEVEN], init=small, seed=3, n=2), expected)
    [graph] = cupy.stand_in.stand_in_graph.graphs
    assert graph.launches > 0


def test_weights_that_changed_or_moved_are_drawn_with(cupy):
    draw = lambda run: run.generate([SEVEN], n=2, seed=1)
    run, other = alive(seed=2), alive(seed=3)
    first, second = draw(run), draw(other)
    assert (first != second).any()
    weights = {name: to_host(p.data).copy() for name, p in other.unet.parameters().items()}
    before = {name: to_host(p.data).copy() for name, p in run.unet.parameters().items()}
    run.unet.load(weights)                                # where they were
    run.model.text_encoder.load({name: to_host(p.data) for name, p in
                                 other.model.text_encoder.parameters().items()})
    np.testing.assert_array_equal(draw(run), second)
    run.to("cpu")
    run.unet.load(before)
    run.to("cuda")                                        # elsewhere
    other.unet.load(before)
    np.testing.assert_array_equal(draw(run), draw(other))
    assert (draw(run) != second).any()
