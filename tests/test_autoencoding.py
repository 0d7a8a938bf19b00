"""The autoencoder's own training: every term of its loss by an oracle, and exact to the bit."""

from dataclasses import replace

import numpy as np
import pytest
from story_helpers import assert_gradients, few_digits, randomised, tiny

from tinydiff import checkpoint, images, train
from tinydiff.autoencoding import AutoencoderTraining, load_autoencoder
from tinydiff.autograd import Tensor, gradcheck, mean, mse
from tinydiff.diffusion import noise
from tinydiff.models import (
    Autoencoder,
    AutoencoderConfig,
    Discriminator,
    VQAutoencoder,
    adaptive_weight,
    autoencoder_for,
    hinge,
)
from tinydiff.models.autoencoder import kl, sampled
from tinydiff.models.quantizer import COMMITMENT, DEAD, Codebook, straight_through
from tinydiff.optim import Flat

SMALL = dict(steps=20, batch=8, base=8, mults=[1, 2], groups=4, latent=3, warmup=5, save_every=7)
KINDS = {"KL": {}, "KL on patches": {"patch": 2, "mults": [1]}, "VQ": {"codes": 16},
         "adversarial": {"adversarial": 0.5, "adversarial_from": 4}}
kinds = pytest.mark.parametrize("kind", KINDS)


def in_training(kind="KL", **tables):
    """An AutoencoderTraining on few digits of 8 × 8 pixels."""
    own = {**SMALL, **KINDS[kind], **tables.pop("autoencoder", {})}
    return AutoencoderTraining(
        tiny(autoencoder=own, sample={"clip": False}, **tables), few_digits())


def exact(training):
    """The same training in float64, with weights off their start."""
    training.flat = Flat(randomised(training.model.astype(np.float64)).parameters())
    training.opponent.flat = Flat(
        randomised(training.discriminator.astype(np.float64)).parameters())
    in_float32 = training.batch
    training.batch = lambda step: in_float32(step).astype(np.float64)
    return training


def test_the_divergence_is_the_integral_of_its_definition(rng):
    mu, logvar = rng.standard_normal((2, 3, 1, 2, 2))
    z = np.linspace(-40, 40, 80_001)[:, None]
    m, var = mu.reshape(-1), np.exp(logvar.reshape(-1))
    log_q = -0.5 * ((z - m) ** 2 / var + np.log(2 * np.pi * var))
    log_p = -0.5 * (z**2 + np.log(2 * np.pi))
    with np.errstate(under="ignore"):
        each = (np.exp(log_q) * (log_q - log_p)).sum(axis=0) * (z[1, 0] - z[0, 0])
    np.testing.assert_allclose(kl(mu, logvar).data, each.reshape(3, 4).sum(axis=1), rtol=1e-9)


def test_a_standard_normal_has_no_divergence_and_anything_else_has():
    zero = np.zeros((2, 3, 3, 4))
    assert (kl(zero, zero).data == 0).all()
    assert (kl(zero + 0.1, zero).data > 0).all()
    assert (kl(zero, zero + 0.1).data > 0).all()
    assert (kl(zero, zero - 0.1).data > 0).all()


def test_a_latent_without_noise_is_the_mean_and_with_it_has_the_deviation(rng):
    mu, logvar = rng.standard_normal((2, 1, 2, 2, 3))
    np.testing.assert_array_equal(sampled(mu, logvar, np.zeros_like(mu)).data, mu)
    eps = rng.standard_normal((20_000, 2, 2, 3))
    z = sampled(mu, logvar, eps).data
    np.testing.assert_allclose(z.mean(axis=0), mu[0], atol=0.06)
    np.testing.assert_allclose(np.log(z.var(axis=0)), logvar[0], atol=0.06)


def test_every_term_has_the_right_gradient(rng):
    mu, logvar, eps, z = rng.standard_normal((4, 2, 2, 3, 2))
    assert gradcheck(lambda m, v: kl(m, v).sum(), mu, logvar) < 1e-6
    assert gradcheck(lambda m, v: (sampled(m, v, eps) * eps).sum(), mu, logvar) < 1e-6
    assert gradcheck(hinge, mu, z) < 1e-6
    network = Discriminator(2, rng=rng, width=3).astype(np.float64)
    assert gradcheck(lambda x: hinge(network(x), network(0.5 * x)), eps) < 1e-6


def test_the_hinge_is_its_formula(rng):
    real, fake = rng.standard_normal((2, 3, 2, 2, 1))
    by_hand = 0.5 * np.mean([max(0, 1 - s) for s in real.ravel()]) \
        + 0.5 * np.mean([max(0, 1 + s) for s in fake.ravel()])
    assert hinge(Tensor(real), Tensor(fake)).item() == pytest.approx(by_hand, rel=1e-12)
    assert hinge(Tensor(real * 0 + 1), Tensor(fake * 0 - 1)).item() == 0    # told apart for sure


def test_a_score_sees_fifteen_pixels_square(rng):
    network = Discriminator(1, rng=rng).astype(np.float64)
    x = Tensor(rng.standard_normal((1, 32, 32, 1)), requires_grad=True)
    network(x)[0, 4, 4].sum().backward()
    rows, columns = np.nonzero(x.grad[0, :, :, 0])
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == 15
    assert network(np.zeros((2, 28, 30, 1))).shape == (2, 7, 8, 1)


def test_the_nearest_code_is_the_one_with_the_least_distance(rng):
    book = Codebook(7, 3, rng=rng).astype(np.float64)
    z, e = rng.standard_normal((4, 2, 5, 3)), book.vectors()
    distances = ((z[..., None, :] - e) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(book.nearest(z), distances.argmin(axis=-1))


def test_the_codes_are_running_means_of_what_chose_them(rng):
    book, decay = Codebook(5, 2, rng=rng).astype(np.float64), 0.9
    book.counts.data[...] = 1                             # none is near death
    counts, sums = book.counts.data.copy(), book.sums.data.copy()
    for _ in range(3):
        z = rng.standard_normal((2, 4, 4, 2))
        vectors = [s / c for s, c in zip(sums, (counts + 1e-5) / (counts.sum() + 5e-5)
                                         * counts.sum(), strict=True)]
        chosen = [[] for _ in vectors]
        for one in z.reshape(-1, 2):
            chosen[np.argmin([((one - e) ** 2).sum() for e in vectors])].append(one)
        for k, mine in enumerate(chosen):                 # 32 latents, 5 codes: 6.4 is average
            counts[k] = decay * counts[k] + (1 - decay) * len(mine) / 6.4
            sums[k] = decay * sums[k] + (1 - decay) * np.sum(mine, axis=0) / 6.4
        book.update(z, rng, decay=decay)
        np.testing.assert_allclose(book.counts.data, counts, rtol=1e-12)
        np.testing.assert_allclose(book.sums.data, sums, rtol=1e-9, atol=1e-12)
    assert book.counts.data.sum() == pytest.approx(5)     # 1 on average, as it started


def test_a_code_that_nobody_chooses_starts_again_from_the_batch(rng):
    book = Codebook(4, 2, rng=rng)
    book.sums.data[3] = 1e3                               # far from everything
    z = rng.standard_normal((6, 2, 2, 2)).astype(np.float32)
    assert 3 not in book.nearest(z)
    book.counts.data[:3], book.counts.data[3] = 1, DEAD
    book.update(z, rng)
    distances = abs(z.reshape(-1, 2) - book.vectors()[3]).max(axis=1)
    assert distances.min() < 1e-4
    assert book.counts.data[3] == 1


def test_to_the_gradient_quantising_is_the_identity(rng):
    z = Tensor(rng.standard_normal((2, 3)), requires_grad=True)
    e, dy = rng.standard_normal((2, 2, 3))
    y = straight_through(z, e)
    np.testing.assert_array_equal(y.data, e)
    y.backward(dy)
    np.testing.assert_array_equal(z.grad, dy)


def test_the_encoder_is_drawn_to_its_codes_and_no_gradient_reaches_them(rng):
    network = autoencoder_for(AutoencoderConfig(**CONFIG, codes=6), rng=rng).astype(np.float64)
    randomised(network)
    x = rng.standard_normal((2, 4, 4, 2))
    z, logvar = network.moments(x)
    assert logvar.shape == (2, 2, 2, 0)
    codes, committed = network.bottleneck(z, logvar, None)
    e = network.codebook.vectors()[network.codebook.nearest(z.data)]
    np.testing.assert_array_equal(codes.data, e)
    assert committed.item() == pytest.approx(COMMITMENT * ((z.data - e) ** 2).mean())
    committed.backward()
    dz = COMMITMENT * 2 * (z.data - e) / z.data.size
    again = network.moments(x)[0]
    expected = {name: p.grad for name, p in network.parameters().items()}
    for p in network.parameters().values():
        p.grad = None
    again.backward(dz)
    for name, p in network.parameters().items():
        assert (expected[name] is None) == (p.grad is None)
        if p.grad is not None:
            np.testing.assert_allclose(expected[name], p.grad, rtol=1e-9, atol=1e-14)
    assert expected["codebook.sums"] is expected["codebook.counts"] is None


CONFIG = dict(channels=2, latent=3, base=4, mults=(1, 2), blocks=1, groups=2,
              attend_middle=False, scale=1.0)


def test_latents_are_continuous_and_pictures_quantise_them(rng):
    network = autoencoder_for(AutoencoderConfig(**CONFIG, codes=6), rng=rng)
    assert type(network) is VQAutoencoder
    assert type(autoencoder_for(AutoencoderConfig(**CONFIG), rng=rng)) is Autoencoder
    x = rng.standard_normal((3, 4, 4, 2)).astype(np.float32)
    z0 = network.latents(x)
    np.testing.assert_array_equal(z0, network.moments(x)[0].data)
    codes = network.codebook.vectors()[network.codebook.nearest(z0)]
    assert abs(z0 - codes).max() > 0.01
    np.testing.assert_array_equal(network.pictures(z0), network.pictures(codes))
    with pytest.raises(ValueError, match=r"expected z \(N, h, w, 3\), got \(3, 2, 2, 2\)"):
        network.pictures(z0[..., :2])


@pytest.mark.parametrize("codes", [0, 6])
def test_latents_and_pictures_undo_each_others_scale_and_shift(codes, rng):
    plain = autoencoder_for(AutoencoderConfig(**CONFIG, codes=codes), rng=rng)
    x = rng.standard_normal((3, 4, 4, 2)).astype(np.float32)
    z, y = plain.latents(x), plain.pictures(plain.latents(x))
    np.testing.assert_array_equal(z, plain.encode(x)[0])
    plain.config = replace(plain.config, scale=4.0, shift=-0.5)
    np.testing.assert_allclose(plain.latents(x), (z + 0.5) * 4, rtol=1e-5)
    np.testing.assert_allclose(plain.pictures(plain.latents(x)), y, rtol=0, atol=1e-5)


def test_many_pictures_are_the_same_as_one_by_one(rng):
    network = autoencoder_for(AutoencoderConfig(**CONFIG), rng=rng)
    x = rng.standard_normal((70, 4, 4, 2)).astype(np.float32)
    z = network.latents(x)
    for function, given in (network.latents, x), (network.pictures, z):
        one_by_one = np.concatenate([function(one[None]) for one in given])
        np.testing.assert_allclose(function(given), one_by_one, rtol=0, atol=1e-5)


def test_on_patches_it_is_the_same_network_with_more_channels(rng):
    network = Autoencoder(AutoencoderConfig(**{**CONFIG, "patch": 2}), rng=rng)
    inner = Autoencoder(AutoencoderConfig(**{**CONFIG, "channels": 8}), rng=rng)
    inner.load({name: p.data for name, p in network.parameters().items()})
    assert network.config.factor == 4
    x = rng.standard_normal((1, 8, 12, 2)).astype(np.float32)
    patches = np.array([[[x[0, 2 * i:2 * i + 2, 2 * j:2 * j + 2].ravel() for j in range(6)]
                         for i in range(4)]])
    np.testing.assert_array_equal(network.encode(x)[0], inner.encode(patches)[0])
    z = rng.standard_normal((1, 2, 3, 3)).astype(np.float32)
    picture, painted = network.decode(z), inner.decode(z)
    for i, j in np.ndindex(4, 6):
        np.testing.assert_array_equal(picture[0, 2 * i:2 * i + 2, 2 * j:2 * j + 2].ravel(),
                                      painted[0, i, j])
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 6, 8, 2\)"):
        network.latents(np.zeros((1, 6, 8, 2), np.float32))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"codes": -1}, "codes must be at least 0, got -1"),
    ({"patch": 0}, "patch must be at least 1, got 0")])
def test_a_configuration_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=f"AutoencoderConfig: {message}"):
        AutoencoderConfig(**{**CONFIG, **wrong})


@kinds
def test_a_step_has_the_gradient_of_equation_25(kind, rng):
    training = exact(in_training(kind, autoencoder={"kl": 0.5}))
    step, t, model = 5, training.plan, training.model
    value = training.gradient(step)
    ours = {name: p.grad.copy() for name, p in model.parameters().items()}
    x, seen = training.batch(step), {}

    def loss():
        mu, logvar = model.moments(x)
        if t.codes:
            e = model.codebook.vectors()[model.codebook.nearest(mu.data)]
            z, regular = straight_through(mu, e), 0.25 * mse(mu, e)
        else:
            z, regular = sampled(mu, logvar, seen["eps"]), mean(kl(mu, logvar))
        y = model.decoded(z)
        total = mse(y, x) + (1.0 if t.codes else t.kl / 64) * regular      # 8 × 8 pixels
        if t.adversarial:
            total = total - seen["weight"] * mean(training.discriminator(y))
        return total

    seen["eps"] = noise.alike(training.latents, 0, step, purpose=noise.TRAIN_EPS)
    if t.adversarial:                                     # λ from two whole gradients
        parts = []
        for weight in (0.0, 1.0):
            seen["weight"] = weight
            last(model).grad = None
            loss().backward()
            parts.append(last(model).grad.copy())
        rec = parts[0]                                    # the KL does not reach the decoder
        adversarial = parts[1] - rec
        seen["weight"] = (0.5 * np.sqrt((rec**2).sum())
                          / (np.sqrt((adversarial**2).sum()) + 1e-4))
    for p in model.parameters().values():
        p.grad = None
    total = loss()
    assert value == pytest.approx(total.item(), rel=1e-9)
    total.backward()
    for name, p in model.parameters().items():
        expected = np.zeros(p.shape) if p.grad is None else p.grad
        np.testing.assert_allclose(ours[name], expected, rtol=1e-7, atol=1e-12, err_msg=name)
    if not t.codes:                                       # choosing a code has no slope
        for p in model.parameters().values():
            p.grad = None
        loss().backward()
        assert_gradients(loss, model.parameters(), rng)


def last(model):
    return model.decoder.conv_out.w


def test_the_weight_of_the_discriminator_has_its_limits():
    one = np.ones(4)
    assert adaptive_weight(0 * one, one) == 0
    assert adaptive_weight(one, 0 * one) == 1e4
    assert adaptive_weight(one, one) == pytest.approx(2 / (2 + 1e-4))


def test_the_generator_seems_more_real_and_the_discriminator_less_deceived(rng):
    training = exact(in_training("adversarial"))
    judge = training.discriminator
    training.gradient(5)
    x = training.batch(5)
    h = training.model.features(training.model.moments(x)[0])
    picture = Tensor(training.model.painted(h).data, requires_grad=True)
    training.contest(picture, x, h).backward()
    told = {name: p.grad.copy() for name, p in judge.parameters().items()}
    for p in judge.parameters().values():
        p.grad = None
    hinge(judge(x), judge(picture.data)).backward()       # and nothing of the generator's term
    for name, p in judge.parameters().items():
        np.testing.assert_allclose(told[name], p.grad, rtol=1e-9, atol=1e-12, err_msg=name)
    before, losing = judge(picture).data.mean(), hinge(judge(x), judge(picture)).item()
    moved = picture.data - 1e-3 * picture.grad / abs(picture.grad).max()
    assert judge(moved).data.mean() > before              # Eq. 25: − L_adv is made small
    for p in judge.parameters().values():
        p.data -= 1e-4 * p.grad
    assert hinge(judge(x), judge(picture)).item() < losing


def test_the_discriminator_joins_when_it_is_told_to_and_not_before():
    plain, contested = in_training(), in_training("adversarial")
    start = {name: p.data.copy() for name, p in contested.discriminator.parameters().items()}
    assert [plain.step() for _ in range(4)] == [contested.step() for _ in range(4)]
    for name, p in contested.discriminator.parameters().items():
        np.testing.assert_array_equal(p.data, start[name])
    (_, lr, _), other = contested.step(), plain.step()
    assert contested.flat.data.tolist() != plain.flat.data.tolist()
    assert other[1] == lr
    moved = contested.discriminator.conv1.w.data - start["conv1.w"]          # Adam's first step
    assert abs(moved).max() == pytest.approx(lr, rel=1e-3)


@kinds
def test_it_goes_on_exactly_where_it_stopped(kind, tmp_path):
    whole = in_training(kind)
    losses = [whole.step() for _ in range(14)]
    train.fit(in_training(kind), tmp_path, stop_at=9, show=False)
    resumed = in_training(kind)
    resumed.load(tmp_path / "autoencoder.safetensors")
    assert resumed.steps_done == 9
    assert [resumed.step() for _ in range(5)] == losses[9:]
    for name, array in whole.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array, err_msg=name)
    assert len((tmp_path / "autoencoder.csv").read_text(encoding="utf-8").splitlines()) == 10


@kinds
def test_the_finished_one_gives_latents_of_deviation_one_and_is_read_back_the_same(kind, tmp_path):
    training = in_training(kind)
    for _ in range(6):
        training.step()
    finished = training.finished()
    z = np.concatenate([finished.latents(training.batch(step)) for step in range(1, 9)])
    assert z.mean() == pytest.approx(0, abs=1e-5)         # LDM App. G
    assert z.std() == pytest.approx(1, abs=1e-5)
    for name, view in training.flat.views(training.ema.data).items():
        np.testing.assert_array_equal(finished.parameters()[name].data, view)
    training.save(tmp_path / "a.safetensors")
    again = load_autoencoder(tmp_path / "a.safetensors")
    assert type(again) is type(finished)
    assert again.config == finished.config
    x = training.batch(20)
    np.testing.assert_array_equal(again.pictures(again.latents(x)),
                                  finished.pictures(finished.latents(x)))


@kinds
def test_it_soon_beats_the_best_constant_picture(kind):
    training = in_training(kind, autoencoder={"steps": 150, "lr": 1e-2, "ema": 0.9})
    for _ in range(150):
        training.step()
    x = np.concatenate([training.batch(step) for step in range(1, 9)])       # all there are
    finished = training.finished()
    error = ((finished.pictures(finished.latents(x)) - x) ** 2).mean()
    assert error < 0.7 * ((x - x.mean(axis=0)) ** 2).mean()


def test_the_steps_walk_through_the_set_and_move_its_codebook():
    training, dataset = in_training("VQ"), few_digits()
    seen = np.concatenate([training.batch(step) for step in range(1, 9)])    # 64 of 64
    assert {x.tobytes() for x in seen} == {x.tobytes() for x in images.to_float(dataset.images)}
    book, expected = training.model.codebook, Codebook(16, 3, rng=np.random.default_rng(0))
    expected.load({name: p.data.copy() for name, p in book.parameters().items()})
    training.step()
    expected.update(training.latents, noise.generator(0, 1, purpose=noise.DROPOUT))
    for name, p in book.parameters().items():
        np.testing.assert_array_equal(p.data, expected.parameters()[name].data)


def test_with_flip_half_of_the_pictures_are_mirrored():
    plain, flipped = in_training().batch(3), in_training(data={"flip": True}).batch(3)
    mirrored = [not (a == b).all() for a, b in zip(plain, flipped, strict=True)]
    assert 0 < sum(mirrored) < len(plain)
    for a, b, turned in zip(plain, flipped, mirrored, strict=True):
        np.testing.assert_array_equal(b, a[:, ::-1] if turned else a)


def test_a_lost_number_ends_the_training_by_step_and_layer(tmp_path):
    training = in_training()
    training.step()
    training.model.decoder.conv_in.w.data[...] = np.inf
    before = training.flat.data.copy()
    with pytest.raises(train.Diverged, match=r"loss of step 2 is nan, lost at .*conv_in.*"
                                             r"smaller autoencoder\.lr"):
        training.step()
    np.testing.assert_array_equal(training.flat.data, before)
    with pytest.raises(train.Diverged, match=r"step 1 lost a number in model/decoder\.conv_in\.w"):
        training.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_no_number_leaves_the_weights_alone():
    training = in_training()
    training.gradient = lambda step: training.flat.grad.fill(np.nan) or 1.0
    before = training.flat.data.copy()
    with pytest.raises(train.Diverged, match=r"gradient of step 1 is nan, lost at .*_in\.w"):
        training.step()
    np.testing.assert_array_equal(training.flat.data, before)
    assert training.steps_done == 0


@pytest.mark.parametrize(("change", "said"), [
    ({"autoencoder": {"kl": 0.5}}, r"autoencoder\.kl = 1e-06, the recipe now says 0\.5"),
    ({"train": {"seed": 1}}, r"train\.seed = 0, the recipe now says 1"),
    ({"data": {"flip": True}}, r"data\.flip = False, the recipe now says True")])
def test_it_goes_on_with_the_same_recipe_only(change, said, tmp_path):
    in_training().save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=said):
        in_training(**change).load(tmp_path / "a.safetensors")
    in_training(train={"steps": 99}, model={"base": 16}).load(tmp_path / "a.safetensors")


def test_files_that_hold_something_else_are_refused(tmp_path):
    checkpoint.save(tmp_path / "w.safetensors", {"a": np.zeros(3)}, {})
    with pytest.raises(ValueError, match="holds weights only, no training"):
        in_training().load(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="is no checkpoint of an autoencoder"):
        load_autoencoder(tmp_path / "w.safetensors")
