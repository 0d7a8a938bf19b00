"""A model that hears nothing: trained without captions, drawn from without prompts."""

import numpy as np
import pytest
from story_helpers import few_digits, tiny

from tinydiff import UNetConfig
from tinydiff.recipe import load_recipe
from tinydiff.runs import load_run, training_run
from tinydiff.train import Training


def trained(steps=3):
    training = Training(tiny(text={"encoder": "none"}), few_digits())
    for _ in range(steps):
        training.step()
    return training


def test_it_is_its_unet_alone():
    model = trained(0).model
    assert model.unet.config.context_width is None
    assert model.count() == model.unet.count()


def test_its_loss_is_that_of_the_unet_without_a_context():
    training = trained()
    x, t = np.ones((2, 8, 8, 1), np.float32), np.array([3.0, 7.0], np.float32)
    said = training.model(x, t, np.zeros((2, 0, 0), np.float32))
    np.testing.assert_array_equal(said.data, training.model.unet(x, t).data)


def test_captions_do_not_matter_to_training():
    told = trained()
    other = Training(tiny(text={"encoder": "none"}, train={"drop": 1.0}), few_digits())
    for _ in range(3):
        other.step()
    np.testing.assert_array_equal(told.flat.data, other.flat.data)


def test_it_draws_the_same_after_saving_and_loading(tmp_path):
    training = trained()
    training.save(tmp_path / "checkpoint.safetensors")
    drawn = training_run(training, "now").generate([""], n=3, guidance=1.0)
    np.testing.assert_array_equal(load_run(tmp_path).generate([""], n=3, guidance=1.0), drawn)
    resumed = Training(tiny(text={"encoder": "none"}), few_digits())
    resumed.load(tmp_path / "checkpoint.safetensors")
    assert resumed.step() == training.step()
    np.testing.assert_array_equal(resumed.flat.data, training.flat.data)


@pytest.mark.parametrize("asked", [dict(prompts=["a seven"]), dict(prompts=[""], negative="a"),
                                   dict(prompts=[""], guidance=2.0)])
def test_it_refuses_to_be_asked_for_something(asked):
    run = training_run(trained(), "digits")
    with pytest.raises(ValueError, match="digits draws without prompts: leave prompts, negative"):
        run.generate(**{"guidance": 1.0, **asked})


def test_the_cifar10_ddpm_recipe_is_the_papers_network():
    recipe = load_recipe("cifar10-ddpm")
    c, paper = recipe.model, UNetConfig.ddpm_cifar10()
    for key in "base mults blocks attend groups dropout heads adaptive predicts middle".split():
        assert getattr(c, key) == getattr(paper, key), key
    assert (recipe.diffusion.schedule, recipe.diffusion.T) == ("linear", 1000)
    t = recipe.train                                      # DDPM §B, its code
    assert (t.batch, t.lr, t.warmup, t.constant, t.ema, t.clip, t.beta2) == (
        128, 2e-4, 5000, True, 0.9999, 1.0, 0.999)
    assert recipe.data.flip
    assert recipe.sample.sampler == "ddpm_large"
