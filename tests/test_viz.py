"""What a figure shows is what it was given: the arrays inside its axes are compared."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff import images
from tinydiff.autograd import mul
from tinydiff.diffusion import Prediction

pytest.importorskip("matplotlib")

from tinydiff import viz


def cell(fig, row, column, side):
    """The picture that stands in one place of an image_grid."""
    sheet = np.asarray(fig.axes[0].images[0].get_array())     # matplotlib drops C = 1
    sheet = sheet.reshape(*sheet.shape[:2], -1)
    top, left = row * (side + viz.GAP), column * (side + viz.GAP)
    return sheet[top:top + side, left:left + side]


def lines(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def labels(texts):
    return [text.get_text() for text in texts]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_picture_in_its_place(rng, channels):
    pictures = rng.uniform(-1, 1, (6, 5, 5, channels)).astype(np.float32)
    fig = viz.image_grid(pictures, rows=["a", "b"], columns=["x", "y", "z"], title="all")
    assert len(fig.axes) == 1
    for i, picture in enumerate(images.to_uint8(pictures)):
        assert np.array_equal(cell(fig, i // 3, i % 3, 5), picture)
    ax = fig.axes[0]
    assert labels(ax.get_xticklabels()) == ["x", "y", "z"]
    assert labels(ax.get_yticklabels()) == ["a", "b"]
    assert ax.get_title() == "all"


def test_grey_levels_do_not_depend_on_what_else_is_in_the_grid():
    dim = np.full((1, 4, 4, 1), 100, np.uint8)
    assert viz.image_grid(dim).axes[0].images[0].get_clim() == (0, 255)


def test_a_pixel_is_drawn_as_a_square_of_zoom_dots():
    picture = np.zeros((1, 6, 6, 1), np.uint8)
    picture[0, 2:4, 1:5] = 255
    fig = viz.image_grid(picture, rows=["a long label"], columns=["one"], title="t", zoom=3)
    fig.canvas.draw()
    box = fig.axes[0].get_window_extent()
    assert (box.width, box.height) == pytest.approx((18, 18))


@pytest.mark.parametrize("given", [dict(rows=["a", "b"]), dict(columns=["x", "y"])])
def test_pictures_that_do_not_fill_the_grid_are_refused(given):
    with pytest.raises(ValueError, match="5 pictures do not fill"):
        viz.image_grid(np.zeros((5, 4, 4, 1), np.uint8), **given)


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="0 pictures"):
        viz.image_grid(np.zeros((0, 4, 4, 1), np.uint8))


def test_a_trajectory_shows_the_first_and_the_last_x_t_above_their_estimates(rng):
    frames = rng.uniform(-1, 1, (20, 2, 4, 4, 1))
    answers = [Prediction(x0=-x_t, eps=x_t) for x_t in frames]
    fig = viz.trajectory(frames, answers, list(range(20, 0, -1)), count=5)
    shown = labels(fig.axes[0].get_xticklabels())
    assert (shown[0], shown[-1], len(shown)) == ("t = 20", "t = 1", 5)
    for column, i in ((0, 0), (4, 19)):
        assert np.array_equal(cell(fig, 0, column, 4), images.to_uint8(frames[i, 0]))
        assert np.array_equal(cell(fig, 1, column, 4), images.to_uint8(-frames[i, 0]))


def test_curves_draw_every_line_and_name_it():
    x = np.arange(1.0, 4.0)
    fig = viz.curves(x, {"up": x, "down": 1 / x}, dots=("down",), log=True)
    ax, = fig.axes
    drawn = lines(ax)
    assert np.array_equal(drawn["up"], np.stack([x, x], axis=1))
    assert np.array_equal(drawn["down"], np.stack([x, 1 / x], axis=1))
    assert labels(ax.get_legend().get_texts()) == ["up", "down"]
    assert ax.get_yscale() == "log"


def test_schedule_curves_draw_signal_noise_and_snr_of_each_schedule():
    schedules = [td.Schedule.cosine(T=50), td.Schedule.linear(T=100)]
    left, right = viz.schedule_curves(schedules).axes
    assert len(left.lines) == 4
    for i in range(len(schedules)):
        signal, noise = (line.get_ydata() for line in left.lines[2 * i:2 * i + 2])
        assert np.allclose(signal**2 + noise**2, 1)
        assert np.allclose(right.lines[i].get_ydata(), 2 * np.log(signal / noise))


def test_the_loss_curve_is_the_mean_of_the_last_losses():
    loss = np.array([4.0, 2.0, 0.0, 5.0, 1.0])
    each, mean = viz.loss_curve(np.arange(1, 6), loss, window=2).axes[0].lines
    assert np.array_equal(each.get_ydata(), loss)
    assert np.allclose(mean.get_ydata(), [4, 3, 1, 2.5, 3])


def test_paths_run_from_the_top_of_the_chain_to_data(rng):
    walks = [rng.standard_normal((5, 3)), rng.standard_normal((5, 3))]
    fig = viz.paths([8, 6, 4, 2, 0], walks, targets=[-1, 1], titles=["a", "b"])
    assert len(fig.axes) == 2
    for ax, walk in zip(fig.axes, walks, strict=True):
        assert np.array_equal(np.stack([line.get_ydata() for line in ax.lines], axis=1), walk)
        assert ax.get_xlim() == (8, 0)
        assert [y for (_, y), _ in ax.collections[0].get_segments()] == [-1, 1]


def test_a_heatmap_holds_the_matrix_and_its_scale(rng):
    matrix = rng.standard_normal((3, 4))
    fig = viz.heatmap(matrix, rows=["a", "b", "c"], low=-2, high=2)
    assert len(fig.axes) == 2                                 # the matrix and its colour bar
    image, = fig.axes[0].images
    assert np.array_equal(image.get_array(), matrix)
    assert image.get_clim() == (-2, 2)


def test_attention_maps_lie_over_the_picture_one_for_each_word(rng):
    picture, maps = rng.integers(256, size=(8, 8, 1), dtype=np.uint8), rng.random((2, 4, 4))
    fig = viz.attention_maps(picture, maps, ["a", "seven"])
    assert [ax.get_title() for ax in fig.axes] == ["", "a", "seven"]
    for ax, weights in zip(fig.axes[1:], maps, strict=True):
        assert np.array_equal(ax.images[0].get_array(), picture[..., 0])
        assert np.array_equal(ax.images[1].get_array(), weights)
        assert ax.images[0].get_extent() == ax.images[1].get_extent()


def test_a_figure_is_a_png_in_a_notebook_and_no_pyplot_state():
    from matplotlib import pyplot
    fig = viz.curves(np.arange(3), {"line": np.arange(3)})
    assert fig._repr_png_().startswith(images.SIGNATURE)
    assert pyplot.get_fignums() == []


def test_a_grid_as_png_has_the_greys_of_the_picture(tmp_path):
    picture = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    (tmp_path / "grid.png").write_bytes(viz.png(viz.image_grid(picture, zoom=1)))
    drawn = images.read_image(tmp_path / "grid.png")[8:24, 12:28]
    assert abs(drawn.astype(int) - picture[0]).max() <= 1     # the colour map's own rounding


def test_a_coloured_figure_as_png_keeps_its_colours(tmp_path):
    colours = np.zeros((1, 8, 8, 3), np.uint8)
    colours[0, :4, :, 0], colours[0, 4:, :, 2] = 200, 90
    (tmp_path / "grid.png").write_bytes(viz.png(viz.image_grid(colours, zoom=1)))
    assert np.array_equal(images.read_image(tmp_path / "grid.png")[8:16, 12:20], colours[0])


def test_mermaid_draws_a_diamond_with_every_edge():
    a = td.Tensor(np.ones((2, 3)), requires_grad=True)
    b = a + a
    diagram = viz.mermaid(mul(b, b), {"a": a})
    assert repr(diagram).splitlines() == [
        "flowchart LR", '  n0["a<br>(2, 3)"]', '  n1("add<br>(2, 3)")', "  n0 --> n1",
        "  n0 --> n1", '  n2("mul<br>(2, 3)")', "  n1 --> n2", "  n1 --> n2"]
    assert diagram._repr_mimebundle_()["text/vnd.mermaid"] == repr(diagram)


@pytest.fixture
def unet(rng):
    unet = td.UNet(td.UNetConfig.tiny(context_width=6), rng=rng)
    for p in unet.parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape).astype(np.float32)
    return unet


def test_watching_changes_nothing_and_leaves_nothing_behind(unet, rng):
    x, context = rng.standard_normal((2, 8, 8, 1), np.float32), np.ones((2, 3, 6), np.float32)
    before, paths = unet.predict(x, 5, context), list(unet.parameters())
    with viz.watch(unet) as calls:
        assert np.array_equal(unet.predict(x, 5, context), before)
    assert list(unet.parameters()) == paths
    seen = {path: (layer, args, answer) for path, layer, args, answer in calls}
    layer, args, answer = seen["conv_in"]
    assert layer is unet.conv_in
    assert np.array_equal(layer(*args).data, answer.data)
    assert any(path.endswith("cross_attention") for path in seen)


def test_the_layers_come_back_after_an_error(unet):
    with pytest.raises(ValueError, match="context is missing"), viz.watch(unet):
        unet.predict(np.zeros((1, 8, 8, 1), np.float32), 5)
    assert type(unet.conv_in).__name__ == "Conv2d"


def test_the_shapes_of_a_unet_name_its_parts_and_add_up(unet):
    text = viz.unet_shapes(unet, np.zeros((1, 8, 8, 1), np.float32), np.array([5]),
                           np.zeros((1, 3, 6), np.float32))
    rows = [line.split() for line in text.splitlines()[1:]]
    counts = [int(row[-1].replace(",", "")) for row in rows]
    assert sum(counts[:-1]) == counts[-1] == unet.count()
    assert "    down.1.blocks.0" not in text                  # one halving: two blanks
    assert "\n  down.1.blocks.0" in text
    assert next(row for row in rows if row[0] == "middle1")[1:-1] == ["(1,", "4,", "4,", "16)"]
