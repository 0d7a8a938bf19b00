"""Pictures: exact conversions, grids, PNG files that others can read, provenance, films."""

import sys

import numpy as np
import pytest

from tinydiff.images import (
    grid,
    read_image,
    read_provenance,
    to_float,
    to_uint8,
    write_film,
    write_png,
)

LEVELS = np.arange(256, dtype=np.uint8)


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image")


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def test_black_is_minus_one_and_white_is_one():
    x = to_float(LEVELS)
    assert (x[0], x[255], x.dtype) == (-1, 1, np.float32)


def test_the_levels_are_equally_far_apart():
    np.testing.assert_allclose(np.diff(to_float(LEVELS)), 2 / 255, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_every_level_survives_the_round_trip(dtype):
    np.testing.assert_array_equal(to_uint8(to_float(LEVELS).astype(dtype)), LEVELS)


def test_numbers_are_rounded_to_the_nearest_level_and_clipped():
    x = np.array([-np.inf, -9, 0.6 / 127.5 - 1, 1 - 0.4 / 127.5, 7, np.inf], np.float32)
    assert to_uint8(x).tolist() == [0, 0, 1, 255, 255, 255]


def test_nan_has_no_colour():
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        to_uint8(np.array([0, np.nan], np.float32))


def test_floats_are_not_taken_for_pixels():
    with pytest.raises(ValueError, match="expected uint8 pixels, got float32"):
        to_float(np.zeros(3, np.float32))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_puts_image_k_in_row_k_div_columns(rng, channels):
    x = noise(rng, 5, 4, 6, channels)
    sheet = grid(x, columns=3, gap=2)
    assert sheet.shape == (2 * 4 + 2, 3 * 6 + 2 * 2, channels)
    for k, image in enumerate(x):
        i, j = divmod(k, 3)
        np.testing.assert_array_equal(sheet[i * 6:i * 6 + 4, j * 8:j * 8 + 6], image)
        sheet[i * 6:i * 6 + 4, j * 8:j * 8 + 6] = 255
    assert (sheet == 255).all()                             # the gaps and the empty cell are white


def test_a_grid_without_gap_is_a_reshape(rng):
    x = noise(rng, 4, 3, 2, 1)
    np.testing.assert_array_equal(grid(x, columns=1, gap=0), x.reshape(12, 2, 1))


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 1, 1), (4, 2, 2), (7, 3, 3), (100, 10, 10)])
def test_a_grid_is_as_square_as_it_can_be(n, rows, columns):
    x = np.zeros((n, 2, 2, 1), np.uint8)
    assert grid(x, gap=1).shape == (rows * 3 - 1, columns * 3 - 1, 1)


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        grid(np.zeros((0, 2, 2, 1), np.uint8))


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 1), (7, 5, 3), (64, 300, 3)])
def test_pillow_reads_the_pixels_that_we_wrote(tmp_path, rng, pillow, shape):
    image = noise(rng, *shape)
    write_png(tmp_path / "a.png", image, {"seed": 1})
    with pillow.open(tmp_path / "a.png") as seen:
        seen.load()
        assert seen.mode == {1: "L", 3: "RGB"}[shape[2]]
        np.testing.assert_array_equal(np.array(seen).reshape(shape), image)
        assert seen.text["tinydiff"] == '{"seed": 1}'
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


def test_a_view_with_strides_is_written_as_it_looks(tmp_path, rng, pillow):
    image = noise(rng, 8, 6, 3)[::-2, ::2]
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


def test_provenance_comes_back_as_it_was_told(tmp_path):
    told = {"prompt": "eine handgeschriebene Sieben – 七", "seed": 2**64 - 1, "guidance": 0.1,
            "nested": {"steps": [1, None, True]}}
    write_png(tmp_path / "a.png", np.zeros((2, 2, 1), np.uint8), told)
    assert read_provenance(tmp_path / "a.png") == told


def test_the_same_picture_gives_the_same_bytes(tmp_path, rng):
    image = noise(rng, 9, 9, 3)
    write_png(tmp_path / "a.png", image, {"a": 1, "b": 2})
    write_png(tmp_path / "b.png", image, {"b": 2, "a": 1})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_without_provenance_is_named(tmp_path):
    write_png(tmp_path / "plain.png", np.zeros((2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match=r"plain\.png holds no provenance"):
        read_provenance(tmp_path / "plain.png")


def test_a_file_that_is_no_png_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.txt is not a PNG file"):
        read_provenance(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"a\.txt cannot be read as a picture: no known format"):
        read_image(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")


def test_every_altered_byte_and_every_cut_before_the_pixels_is_noticed(tmp_path):
    path = tmp_path / "a.png"
    write_png(path, np.zeros((2, 2, 1), np.uint8), {"seed": 1})
    whole = path.read_bytes()
    end = whole.index(b"IDAT") - 4
    for i in range(end):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1:])
        with pytest.raises(ValueError, match=r"damaged|not a PNG|no provenance"):
            read_provenance(path)
        path.write_bytes(whole[:i])
        with pytest.raises(ValueError, match=r"damaged|not a PNG|no provenance"):
            read_provenance(path)


def test_a_picture_cut_short_is_refused(tmp_path, rng):
    path = tmp_path / "a.png"
    write_png(path, noise(rng, 40, 40, 3))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
        read_image(path)


@pytest.mark.parametrize("image", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8),
                                   np.zeros((1, 2, 2, 3), np.uint8), np.zeros((2, 2, 3))])
def test_what_is_not_a_picture_is_refused_with_its_shape(tmp_path, image):
    with pytest.raises(ValueError, match="expected uint8"):
        write_png(tmp_path / "a.png", image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("RGB", 3),
                                                ("RGBA", 3), ("P", 3)])
def test_pictures_of_other_programs_become_grey_or_rgb(tmp_path, pillow, mode, channels):
    pillow.new(mode, (5, 4)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert (image.shape, image.dtype, image.max()) == ((4, 5, channels), np.uint8, 0)


def test_sixteen_bits_of_grey_keep_their_brightness(tmp_path, pillow):
    deep = np.array([[0, 128 * 257, 65535]], np.uint16)
    pillow.fromarray(deep).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").ravel().tolist() == [0, 128, 255]


def test_png_is_written_and_its_provenance_read_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    write_png(tmp_path / "a.png", np.zeros((2, 2, 1), np.uint8), {"seed": 1})
    assert read_provenance(tmp_path / "a.png") == {"seed": 1}
    with pytest.raises(ModuleNotFoundError, match="pip install pillow"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_film_shows_every_frame_for_its_time(tmp_path, pillow, suffix, channels):
    frames = [np.full((8, 6, channels), level, np.uint8) for level in (0, 100, 255)]
    write_film(tmp_path / f"a{suffix}", iter(frames), seconds_per_frame=0.1, seconds_of_last=2)
    with pillow.open(tmp_path / f"a{suffix}") as film:
        assert film.n_frames == 3
        assert film.info["loop"] == 0                       # for ever
        for k, frame in enumerate(frames):
            film.seek(k)
            film.load()
            assert film.info["duration"] == (2000 if k == 2 else 100)
            np.testing.assert_array_equal(np.array(film.convert("RGB")), np.broadcast_to(
                frame, (8, 6, 3)))


def test_a_grey_gif_and_a_colour_webp_keep_every_pixel(tmp_path, rng, pillow):
    for name, frames in {"a.gif": noise(rng, 3, 9, 7, 1), "a.webp": noise(rng, 3, 9, 7, 3)}.items():
        write_film(tmp_path / name, frames)
        with pillow.open(tmp_path / name) as film:
            film.seek(1)
            seen = np.array(film.convert("RGB"))
        np.testing.assert_array_equal(seen, np.broadcast_to(frames[1], (9, 7, 3)))


@pytest.mark.parametrize(("name", "frames", "words"), [
    ("a.mp4", [np.zeros((2, 2, 1), np.uint8)], "ends in .gif or .webp"),
    ("a.gif", [], "got 0 frames"),
    ("a.gif", [np.zeros((2, 2, 1), np.uint8), np.zeros((2, 3, 1), np.uint8)], "frames of one size"),
    ("a.gif", [np.zeros((2, 2, 3), np.float32)], "expected uint8")])
def test_a_film_that_cannot_be_is_refused(tmp_path, name, frames, words):
    with pytest.raises(ValueError, match=words):
        write_film(tmp_path / name, frames)
    assert list(tmp_path.iterdir()) == []


def test_a_png_is_what_the_standard_says_byte_by_byte(tmp_path):
    write_png(tmp_path / "a.png", np.array([[[7]]], np.uint8))
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[8:33] == b"\0\0\0\rIHDR" b"\0\0\0\1\0\0\0\1\x08\0\0\0\0" b"\x3a\x7e\x9b\x55"
    assert data[-12:] == b"\0\0\0\0IEND\xaeB`\x82"
