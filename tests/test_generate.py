"""Generating: a picture depends on its prompt, its seed and its index, and on nothing else."""

import hashlib
from inspect import signature

import numpy as np
import pytest
from story_helpers import answer, few_digits, in_training, randomised, tiny

from tinydiff import __version__, checkpoint, images, runs
from tinydiff.autograd import no_grad
from tinydiff.data import captions
from tinydiff.diffusion import Schedule, clipped, ddim, ddpm, image_to_image, noise
from tinydiff.generate import Run
from tinydiff.images import write_pictures
from tinydiff.models import TextEncoderConfig, TextToImage, Tokenizer, UNetConfig
from tinydiff.predictor import denoiser
from tinydiff.recipe import SAMPLERS, walk
from tinydiff.runs import load_run, training_run

SEVEN, TWO, EIGHT = "a handwritten seven", "the digit 2", "8"


def a_run(clip=True, **model):
    """A Run whose network nobody trained, every weight of which matters; pictures 8 × 8."""
    texts = [text for label in range(10) for text in captions("digits", label)]
    tokenizer = Tokenizer.learn(texts, 300, 24)
    network = TextToImage(
        tokenizer, TextEncoderConfig(tokenizer.size, length=24, width=16, depth=1, heads=2),
        UNetConfig(**{"base": 8, "groups": 4, "predicts": "v", "context_width": 16, **model}),
        rng=np.random.default_rng(0))
    return Run(randomised(network), Schedule.cosine(T=50), tiny(sample={"clip": clip}),
               (8, 8, model.get("channels", 1)), "random")


def last(frames):
    *_, x0 = frames
    return x0


@pytest.fixture
def cores(monkeypatch):
    """A function that sets the number of threads."""
    return lambda n: monkeypatch.setenv("OMP_NUM_THREADS", str(n))


@pytest.fixture
def in_float64(monkeypatch):
    """Draw all noise in float64; what the samplers compute follows."""
    batch = noise.batch

    def wide(seed, images, step, shape, dtype=None, **kind):
        return batch(seed, images, step, shape, np.float64, **kind)

    monkeypatch.setattr(noise, "batch", wide)


def crowds_and_loners(run, **options):
    """(picture k of a prompt drawn among many, the same drawn in smaller company) in all ways."""
    many = last(run.denoise([SEVEN, TWO, EIGHT], n=5, **options))
    yield many[5:10], last(run.denoise([TWO], n=5, **options))             # other prompts
    yield many[10:12], last(run.denoise([EIGHT], n=2, **options))          # n
    yield many[10:15], last(run.denoise([EIGHT, SEVEN], n=5, **options))[:5]
    yield many, last(run.denoise([SEVEN, TWO, EIGHT], n=5, batch=1, **options))
    yield many, last(run.denoise([SEVEN, TWO, EIGHT], n=5, batch=4, **options))


@pytest.mark.parametrize(("sampler", "guidance"), [
    *((name, 3.0) for name in SAMPLERS if not name.startswith("flow")),
    ("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0), ("ddpm", 1.0)])
def test_a_picture_does_not_depend_on_its_company(sampler, guidance, in_float64):
    run = a_run()
    run.model.astype(np.float64)
    for crowd, loner in crowds_and_loners(run, sampler=sampler, guidance=guidance):
        assert crowd.dtype == np.float64
        np.testing.assert_allclose(crowd, loner, rtol=0, atol=1e-10)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_in_float32_a_picture_changes_by_less_than_one_level_in_other_company(guidance):
    for crowd, loner in crowds_and_loners(a_run(), guidance=guidance):
        assert crowd.dtype == np.float32
        np.testing.assert_allclose(crowd, loner, rtol=0, atol=1e-4)
        levels = images.to_uint8(crowd).astype(int) - images.to_uint8(loner)
        assert abs(levels).max() <= 1


def test_the_pictures_of_a_prompt_are_the_same_on_any_number_of_cores(cores):
    run = a_run()
    pictures = []
    for n in (1, 2, 3, 4):
        cores(n)
        pictures.append(last(run.denoise([SEVEN, TWO], n=3)))
    for other in pictures[1:]:
        np.testing.assert_allclose(other, pictures[0], rtol=0, atol=1e-4)


DIGEST = """
import hashlib
from test_generate import SEVEN, a_run
print(hashlib.sha256(a_run().generate([SEVEN], n=4)).hexdigest())
"""


def test_two_processes_draw_the_same_bytes():
    assert answer(DIGEST, threads=2) == answer(DIGEST, threads=2)


def test_another_seed_or_another_index_is_another_picture():
    run = a_run()
    pictures = np.concatenate([run.generate([SEVEN], n=2, seed=seed) for seed in (0, 1, 2**64 - 1)])
    assert len(np.unique(pictures.reshape(6, -1), axis=0)) == 6
    np.testing.assert_array_equal(pictures[:2], run.generate([SEVEN], n=2))      # seed 0


def test_all_pictures_of_the_first_prompt_come_first_from_the_same_noise():
    run = a_run()
    x_T = next(iter(run.denoise([SEVEN, TWO], n=2, seed=3)))
    expected = np.stack([noise.normal(3, k, 0, (8, 8, 1)) for k in (0, 1, 0, 1)])
    np.testing.assert_array_equal(x_T, expected)
    both = run.generate([SEVEN, TWO], n=2)
    np.testing.assert_array_equal(both[:2], run.generate([SEVEN], n=2))
    assert (both[0] != both[2]).any()                      # one noise, two prompts


def by_hand(run, prompt, steps):
    """The first picture without guidance, in the fewest words."""
    with no_grad():
        context = run.model.text_encoder(run.model.tokenizer.encode([prompt])).data
    predict = clipped(denoiser(run.model.unet, run.schedule, context), run.schedule)
    return last(ddim(predict, noise.normal(0, 0, 0, (8, 8, 1))[None], run.schedule, steps=steps))


def test_w_1_is_the_prompt_alone_and_w_0_is_no_prompt():
    run = a_run()
    one, nothing = by_hand(run, SEVEN, 4), by_hand(run, "", 4)
    np.testing.assert_array_equal(last(run.denoise([SEVEN], guidance=1.0)), one)
    np.testing.assert_allclose(last(run.denoise([SEVEN], guidance=0.0)), nothing, atol=1e-4)
    np.testing.assert_allclose(last(run.denoise([TWO], guidance=0.0)), nothing, atol=1e-4)
    assert abs(one - nothing).max() > 0.05


def test_guidance_goes_past_the_prompt_on_the_line_from_no_prompt(in_float64):
    run = a_run(clip=False)
    run.model.astype(np.float64)
    x = {w: last(run.denoise([SEVEN], steps=1, guidance=w)) for w in (0.0, 1.0, 3.0)}
    assert abs(x[1.0] - x[0.0]).max() > 0.01
    np.testing.assert_allclose(x[3.0], x[0.0] + 3 * (x[1.0] - x[0.0]), rtol=1e-9)    # CFG Eq. 6


def test_w_0_1_and_3_draw_three_pictures():
    pictures = [a_run().generate([SEVEN], guidance=w) for w in (0, 1, 3)]
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_a_negative_prompt_takes_the_place_of_no_prompt():
    run = a_run()
    np.testing.assert_allclose(last(run.denoise([SEVEN], negative=SEVEN, guidance=3.0)),
                               last(run.denoise([SEVEN], guidance=1.0)), atol=1e-4)
    np.testing.assert_allclose(last(run.denoise([SEVEN], negative=TWO, guidance=0.0)),
                               last(run.denoise([TWO], guidance=1.0)), atol=1e-4)
    assert (run.generate([SEVEN], negative=TWO) != run.generate([SEVEN])).any()


@pytest.mark.parametrize(("schedule", "sampler", "predicts"), [
    (Schedule.karras(50), "edm", "edm"), (Schedule.flow(50), "flow_heun", "velocity"),
    (Schedule.cosine(50).zero_terminal_snr(), "dpmpp_2m", "v")])
def test_every_family_of_schedules_draws_from_its_own_spread(schedule, sampler, predicts):
    run = a_run(predicts=predicts)
    run.schedule = schedule
    first, *_, x0 = run.denoise([SEVEN], n=3, seed=5, guidance=1.0, sampler=sampler)
    x_T = schedule.prior_std * noise.batch(5, range(3), 0, (8, 8, 1))
    np.testing.assert_array_equal(first, x_T)
    predict = clipped(denoiser(run.model.unet, schedule, run.contexts([SEVEN] * 3)), schedule)
    times = walk(schedule, sampler, 4, "own")
    expected = last(SAMPLERS[sampler](predict, x_T, schedule, timesteps=times, seed=5))
    np.testing.assert_allclose(x0, expected, rtol=0, atol=1e-5)


def test_a_learned_variance_is_that_of_the_step_the_sampler_takes():
    run = a_run(learned_variance=True)
    predict = denoiser(run.model.unet, run.schedule, run.contexts([SEVEN]))
    x_T = noise.batch(0, [0], 0, (8, 8, 1))
    expected = last(ddpm(clipped(predict, run.schedule), x_T, run.schedule, steps=2))
    drawn = last(run.denoise([SEVEN], steps=2, guidance=1.0, sampler="ddpm"))
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-5)
    of_step = predict(x_T, 50).log_variance
    assert (of_step(25) != of_step(49)).all()


def test_what_is_not_asked_for_is_the_recipes():
    run = a_run()
    s = run.recipe.sample
    asked = dict(steps=s.steps, guidance=s.guidance, sampler=s.sampler, n=1, seed=0, negative="")
    np.testing.assert_array_equal(run.generate([SEVEN]), run.generate([SEVEN], **asked))
    for other in ({"steps": 5}, {"guidance": 2.0}, {"sampler": "ddpm"}):
        assert (run.generate([SEVEN]) != run.generate([SEVEN], **other)).any(), other


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "pndm", "unipc"])
def test_a_film_has_a_frame_for_the_noise_and_one_for_each_step(steps, sampler):
    frames = list(a_run().denoise([SEVEN, TWO], n=2, steps=steps, sampler=sampler))
    assert len(frames) == steps + 1
    assert {frame.shape for frame in frames} == {(4, 8, 8, 1)}


def test_the_clip_of_the_recipe_keeps_the_pictures_inside_the_range():
    assert abs(last(a_run(clip=True).denoise([SEVEN], n=4))).max() <= 1 + 1e-6
    assert abs(last(a_run(clip=False).denoise([SEVEN], n=4, guidance=9.0))).max() > 1


@pytest.mark.parametrize(("patch", "size"), [(1, (12, 6)), (1, (1, 1)), (2, (4, 10)), (2, (2, 2))])
def test_pictures_come_in_the_size_asked_for(patch, size):
    run = a_run(patch=patch, channels=3)
    assert run.generate([SEVEN], size=size).shape == (1, *size, 3)
    assert run.generate([SEVEN]).shape == (1, 8, 8, 3)


@pytest.mark.parametrize(("options", "says"), [
    ({"prompts": SEVEN},              "a list of prompts"),
    ({"prompts": []},                 "a list of prompts"),
    ({"prompts": [SEVEN, 7]},         "a list of prompts"),
    ({"prompts": ["seven " * 30]},    "tokens long, the text encoder reads at most 24"),
    ({"negative": "seven " * 30},     "tokens long"),
    ({"n": 0},                        "n of at least 1, got 0"),
    ({"n": 1.5},                      "n of at least 1, got 1.5"),
    ({"batch": 0},                    "batch of at least 1"),
    ({"steps": 0},                    "from 1 to the schedule's T = 50, got 0"),
    ({"steps": 51},                   "from 1 to the schedule's T = 50, got 51"),
    ({"steps": 2.5},                  "a whole number of steps, got 2.5"),
    ({"sampler": "dpm"},              "no sampler called 'dpm'; did you mean 'ddpm'"),
    ({"sampler": ""},                 "no sampler called ''"),
    ({"guidance": float("nan")},      "a finite guidance, got nan"),
    ({"guidance": float("inf")},      "a finite guidance, got inf"),
    ({"guidance": "3"},               "a finite guidance, got '3'"),
    ({"negative": None},              "negative as a text, got None"),
    ({"sampler": ddim},               "the name of a sampler, got <function ddim"),
    ({"seed": -1},                    "seed from 0 to 2⁶⁴ − 1, got -1"),
    ({"seed": 2**64},                 "seed from 0 to 2⁶⁴ − 1"),
    ({"seed": None},                  "seed from 0 to 2⁶⁴ − 1, got None"),
    ({"size": 28},                    r"size \(H, W\) in multiples of 2, got 28"),
    ({"size": (14., 20)},             r"size \(H, W\)"),
    ({"size": ()},                    r"size \(H, W\)"),
    ({"size": (8,)},                  r"size \(H, W\) in multiples of 2"),
    ({"size": (0, 8)},                r"size \(H, W\)"),
    ({"size": (8, 7)},                r"multiples of 2, got \(8, 7\)")])
def test_what_cannot_be_drawn_is_refused_at_once_in_one_sentence(options, says):
    run = a_run(patch=2)
    for draw in (run.denoise, run.generate):                           # no frame asked for yet
        with pytest.raises(ValueError, match=says) as caught:
            draw(**{"prompts": [SEVEN], **options})
        assert "\n" not in str(caught.value)


def test_a_model_that_lost_its_numbers_is_told_from_a_black_picture():
    run = a_run()
    run.model.unet.conv_in.w.data[...] = np.nan
    with pytest.raises(ValueError, match="values are NaN; the model that made them has diverged"):
        run.generate([SEVEN])


def saved(folder, steps=2):
    """A checkpoint of a short training, and the training."""
    training = in_training()
    for _ in range(steps):
        training.step()
    training.save(folder / "checkpoint.safetensors")
    return training


def test_a_run_that_was_loaded_draws_what_the_training_would(tmp_path):
    training = saved(tmp_path)
    expected = training_run(training, "now").generate([SEVEN, TWO], n=2)
    for path in (tmp_path, str(tmp_path), tmp_path / "checkpoint.safetensors"):
        np.testing.assert_array_equal(load_run(path).generate([SEVEN, TWO], n=2), expected)
    run = load_run(tmp_path)
    assert (run.shape, run.recipe, run.name) == ((8, 8, 1), training.recipe, str(tmp_path))
    assert run.schedule == training.schedule


def test_weights_alone_in_half_precision_draw_the_same_within_its_rounding(tmp_path):
    training = saved(tmp_path)
    arrays, config = checkpoint.load(tmp_path / "checkpoint.safetensors")
    del config["step"]
    with np.errstate(under="ignore"):
        ema = {name: array.astype(np.float16) for name, array in arrays.items() if "ema/" in name}
    checkpoint.save(tmp_path / "small.safetensors", ema, config)
    run = load_run(tmp_path / "small.safetensors")
    for name, p in run.model.parameters().items():
        assert p.data.dtype == np.float32
        np.testing.assert_array_equal(p.data, ema[f"ema/{name}"].astype(np.float32))
    np.testing.assert_allclose(last(run.denoise([SEVEN])),
                               last(training_run(training, "now").denoise([SEVEN])), atol=0.02)


def test_a_shipped_checkpoint_is_found_by_its_name(tmp_path, monkeypatch):
    saved(tmp_path)
    (tmp_path / "checkpoint.safetensors").rename(tmp_path / "mnist.safetensors")
    monkeypatch.setattr(runs, "SHIPPED", tmp_path)
    assert load_run("mnist").shape == (8, 8, 1)
    with pytest.raises(FileNotFoundError, match=r"no run 'mnits'.* did you mean 'mnist'"):
        load_run("mnits")


def test_a_missing_run_and_a_folder_without_a_checkpoint_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run '.*/nowhere': expected a run folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds neither checkpoint.safetensors nor"):
        load_run(tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="cut short"):
        load_run(tmp_path)
    path.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(ValueError, match="is damaged"):
        load_run(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="an empty file"):
        load_run(tmp_path)


def test_safetensors_of_another_kind_are_no_run(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}      '
    (tmp_path / "theirs.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(4))
    checkpoint.save(tmp_path / "ours.safetensors", {}, {"model": {}})
    for name in ("theirs", "ours"):
        with pytest.raises(ValueError, match="is no checkpoint of a tinydiff run"):
            load_run(tmp_path / f"{name}.safetensors")


def test_weights_that_do_not_fit_the_model_are_refused(tmp_path):
    saved(tmp_path)
    arrays, config = checkpoint.load(tmp_path / "checkpoint.safetensors")
    del arrays["ema/unet.conv_in.b"]
    checkpoint.save(tmp_path / "checkpoint.safetensors", arrays, config)
    with pytest.raises(ValueError, match=r"unet\.conv_in\.b is missing from the weights"):
        load_run(tmp_path)


def test_a_picture_remembers_what_it_was_made_of_and_can_be_drawn_again_from_it(tmp_path):
    run = a_run()
    run.name = str(tmp_path / "secret" / "random")
    for options in ({}, {"n": 2, "seed": 2**64 - 1, "guidance": np.float32(2.5), "steps": 3,
                         "sampler": "ddpm", "negative": TWO, "size": (12, 8)}):
        prompts = [SEVEN, "the digit „7“"]
        frames = run.denoise(prompts, **options)
        asked = run.settings(prompts, **options)
        write_pictures(tmp_path / "a.png", map(run.pixels, frames), 1, asked)
        told = images.read_provenance(tmp_path / "a.png")
        assert (told.pop("model"), told.pop("tinydiff")) == ("random", __version__)
        assert None not in told.values()
        np.testing.assert_array_equal(run.generate(**told), run.generate(prompts, **options))


def test_settings_fill_in_what_the_recipe_says():
    run = a_run()
    s = run.recipe.sample
    assert run.settings([SEVEN]) == {
        "tinydiff": __version__, "model": "random", "prompts": [SEVEN], "n": 1, "seed": 0,
        "sampler": s.sampler, "steps": s.steps, "guidance": s.guidance, "negative": "",
        "size": [8, 8]}


def test_generate_spells_its_options_out():
    assert str(signature(Run.generate)) == (
        "(self, prompts, *, n=1, seed=0, steps=None, guidance=None, sampler=None, "
        "negative='', size=None, init=None, mask=None, strength=None, batch=64, show=False)")


@pytest.mark.parametrize(("prompts", "n", "rows", "columns"), [
    (1, 1, 1, 1), (1, 4, 2, 2), (1, 5, 2, 3), (2, 1, 1, 2), (3, 1, 2, 2), (2, 3, 2, 3),
    (3, 2, 3, 2)])
def test_several_prompts_take_a_row_each(tmp_path, prompts, n, rows, columns):
    pytest.importorskip("PIL")
    x = np.arange(prompts * n, dtype=np.float32).reshape(-1, 1, 1, 1) / 100 + np.zeros((8, 6, 1))
    write_pictures(tmp_path / "a.png", map(images.to_uint8, [0 * x, x]),
                   n if n > 1 < prompts else None, {})
    sheet = images.read_image(tmp_path / "a.png")
    assert sheet.shape == (rows * 10 - 2, columns * 8 - 2, 1)
    for k in range(prompts * n):
        tile = sheet[k // columns * 10:, k % columns * 8:][:8, :6]
        np.testing.assert_array_equal(tile, images.to_uint8(x[k]))


@pytest.mark.parametrize("name", ["a.npy", "A.NPY"])
def test_npy_holds_the_last_frame_as_bytes(tmp_path, name):
    frames = list(a_run().denoise([SEVEN, TWO], n=2))
    write_pictures(tmp_path / name, map(images.to_uint8, frames), 2, {})
    array = np.load(tmp_path / name)
    assert (array.dtype, array.shape) == (np.uint8, (4, 8, 8, 1))
    np.testing.assert_array_equal(array, images.to_uint8(frames[-1]))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".GIF"])
def test_a_film_shows_every_frame(tmp_path, suffix):
    Image = pytest.importorskip("PIL.Image")
    frames = a_run().denoise([SEVEN, TWO], n=2)
    write_pictures(tmp_path / f"a{suffix}", map(images.to_uint8, frames), 2, {})
    with Image.open(tmp_path / f"a{suffix}") as film:
        assert film.n_frames == 5
        assert film.size == (18, 18)


def test_previews_draw_from_the_running_mean():
    training = in_training()
    training.ema.data += 0.1
    run = training_run(training, "now")
    for name, view in training.flat.views(training.ema.data).items():
        np.testing.assert_array_equal(run.model.parameters()[name].data, view)
    assert run.shape == few_digits().images.shape[1:]


# Pictures from pictures


def a_picture(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 1), np.uint8)


def test_a_picture_is_changed_as_image_to_image_does():
    run, init = a_run(clip=False), a_picture()
    found = run.generate([SEVEN], init=init, strength=0.5, steps=4, seed=3, guidance=1.0)
    context = run.contexts([SEVEN])
    *_, x0 = image_to_image(ddim, denoiser(run.model.unet, run.schedule, context),
                            images.to_float(init[None]), run.schedule, strength=0.5, steps=4,
                            seed=3)
    np.testing.assert_array_equal(found, images.to_uint8(x0))


def test_where_the_mask_is_dark_the_picture_stays():
    run, init = a_run(), a_picture()
    mask = np.zeros_like(init)
    mask[2:5, 3:] = 255
    for n, strength in (1, None), (3, 0.4):
        found = run.generate([SEVEN, TWO], n=n, init=init, mask=mask, strength=strength)
        still = mask == 0
        np.testing.assert_array_equal(found[:, still], np.tile(init[still], (2 * n, 1)))
        assert (found[:, mask > 0] != init[mask > 0]).mean() > 0.5


def test_what_a_picture_was_made_from_is_told():
    init = a_picture()
    mask = init // 128 * 255
    told = a_run().settings([SEVEN], init=init)
    assert (told["strength"], told["size"]) == (0.8, [8, 8])
    assert told["init"] == hashlib.sha256(init.tobytes()).hexdigest()
    told = a_run().settings([SEVEN], init=init, mask=mask)
    assert (told["strength"], told["mask"]) == (1.0, hashlib.sha256(mask.tobytes()).hexdigest())


@pytest.mark.parametrize(("options", "complaint"), [
    ({"strength": 0.5}, "a mask or a strength needs init"),
    ({"mask": a_picture()}, "a mask or a strength needs init"),
    ({"init": a_picture(), "strength": 0.0}, "strength must lie in"),
    ({"init": a_picture(), "strength": 1.5}, "strength must lie in"),
    ({"init": a_picture(), "size": (8, 16)}, r"expected init uint8 \(8, 16, 1\), got uint8 \(8, 8"),
    ({"init": a_picture().astype(float)}, "expected init uint8"),
    ({"init": "me.png"}, "expected size"),
    ({"init": "me.png", "size": (8, 8)}, r"expected init uint8 \(8, 8, 1\), got str"),
    ({"init": a_picture(), "mask": np.zeros((4, 4, 1), np.uint8)}, "expected mask uint8"),
])
def test_pictures_that_cannot_be_changed_are_refused_in_one_sentence(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        a_run().generate([SEVEN], **options)
