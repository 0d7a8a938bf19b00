"""Configs of transformers' text encoders: what is left out, what is refused, by file and key."""

import json
from functools import partial

import numpy as np
import pytest

from tinydiff.checkpoint import write
from tinydiff.models import TextEncoder, TextEncoderConfig
from tinydiff.pretrained.tensors import open_tensors
from tinydiff.pretrained.text import load_text_encoder, place, read_config, write_config
from tinydiff.pretrained.weights import as_theirs

CLIP, BERT, T5 = ({"architectures": [name]} for name in ("CLIPTextModel", "BertModel",
                                                        "T5EncoderModel"))


def test_what_a_config_leaves_out_is_its_classs_own():
    assert read_config(BERT, "f") == TextEncoderConfig(
        30522, 512, 768, 12, 12, "bert", hidden=3072, eps=1e-12)
    assert read_config(T5, "f") == TextEncoderConfig(
        32128, 0, 512, 6, 8, "t5", hidden=2048, inner=512, activation="relu", eps=1e-6)
    assert read_config(CLIP, "f") == TextEncoderConfig(
        49408, 77, 512, 12, 8, "clip", hidden=2048, activation="gelu_quick", end=49407)
    stable_diffusion = CLIP | dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072,
                                   eos_token_id=2, dropout=0.1, _name_or_path="x", torch_dtype=3)
    assert write_config(read_config(stable_diffusion, "f")) == write_config(
        TextEncoderConfig.clip())


@pytest.mark.parametrize(("name", "activation", "gated"), [
    ("relu", "relu", False), ("gelu", "gelu", False), ("gelu_new", "gelu_tanh", False),
    ("gated-gelu", "gelu_tanh", True), ("gated-gelu_new", "gelu_tanh", True),
    ("gated-silu", "silu", True), ("gated-relu", "relu", True)])
def test_t5s_gated_gelu_alone_is_the_one_by_tanh(name, activation, gated):
    config = read_config(T5 | dict(feed_forward_proj=name), "f")
    assert (config.activation, config.gated) == (activation, gated)


@pytest.mark.parametrize(("config", "message"), [
    ({}, r"f: architectures None .* expected one of CLIPTextModel, .*BertModel.*T5EncoderModel"),
    ({"architectures": "BertModel"}, "f: architectures BertModel is not supported"),
    ({"architectures": []}, "f: architectures"),
    ({"architectures": [["BertModel"]]}, "f: architectures"),
    ({"architectures": ["GPT2LMHeadModel"]}, "architectures .*GPT2LMHeadModel"),
    (CLIP | dict(hidden_act="mish"), "f: hidden_act mish is not supported; expected 'gelu' or"),
    (CLIP | dict(hidden_act=["gelu"]), "f: hidden_act"),
    (CLIP | dict(num_attention_heads=7), "f: num_attention_heads 7 .* a divisor of hidden_size"),
    (CLIP | dict(num_attention_heads=0), "f: num_attention_heads 0"),
    (CLIP | dict(hidden_size="512"), "f: hidden_size"),
    (CLIP | dict(hidden_size=10**9), "f: hidden_size 1000000000"),
    (CLIP | dict(num_hidden_layers=-1), "f: num_hidden_layers -1"),
    (CLIP | dict(num_hidden_layers=True), "f: num_hidden_layers True"),
    (CLIP | dict(eos_token_id=[2, 3]), "f: eos_token_id .* expected one id"),
    (CLIP | dict(text_config=[]), "f: text_config"),
    (CLIP | dict(text_config=dict(vocab_size=1.5)), "f: vocab_size 1.5"),
    (BERT | dict(layer_norm_eps="1e-12"), "f: layer_norm_eps"),
    (BERT | dict(layer_norm_eps=float("nan")), "f: layer_norm_eps"),
    (BERT | dict(layer_norm_eps=-1), "f: layer_norm_eps -1 .* expected a number above 0"),
    (T5 | dict(layer_norm_epsilon=0), "f: layer_norm_epsilon 0 .* expected a number above 0"),
    (BERT | dict(position_embedding_type="relative_key"), "f: position_embedding_type rel"),
    (BERT | dict(is_decoder=True), "f: is_decoder True"),
    (BERT | dict(type_vocab_size=0), "f: type_vocab_size 0"),
    (T5 | dict(feed_forward_proj="gated-mish"), "f: feed_forward_proj gated-mish"),
    (T5 | dict(feed_forward_proj=None), "f: feed_forward_proj None"),
    (T5 | dict(relative_attention_num_buckets=3), "f: relative_attention_num_buckets 3"),
    (T5 | dict(relative_attention_max_distance=8), r"relative_attention_num_buckets 32 .* 4 to 31"),
    (T5 | dict(d_kv=None), "f: d_kv None"),
])
def test_what_no_text_encoder_can_be_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        read_config(config, "f")


@pytest.mark.parametrize("wrong", [dict(form="masked"), dict(form="bert"), dict(gated=True),
                                   dict(inner=8)])
def test_what_clip_cannot_be_is_not_written(wrong):
    config = TextEncoderConfig(**{"form": "clip", **wrong})
    with pytest.raises(ValueError, match=r'CLIPTextModel is text.form = "clip" without'):
        write_config(config)
    assert write_config(TextEncoderConfig(form="clip", inner=64))["intermediate_size"] == 256


def test_what_is_written_is_read_again(tmp_path, rng):
    config = TextEncoderConfig(vocabulary=30, length=5, width=8, depth=1, heads=2, form="clip")
    encoder = TextEncoder(config, rng=rng)
    for p in encoder.parameters().values():
        p.data += rng.standard_normal(p.shape, dtype=np.float32)
    write(tmp_path / "model.safetensors", as_theirs(encoder, partial(place, "clip")),
          {"format": "pt"})
    theirs = json.loads(json.dumps(write_config(config)))
    again = load_text_encoder(theirs, "f", open_tensors(tmp_path, "model"))
    for name, p in encoder.parameters().items():
        np.testing.assert_array_equal(again.parameters()[name].data, p.data)
    ids = rng.integers(0, 30, (2, 5))
    np.testing.assert_array_equal(again.encode(ids)[0], encoder(ids).data)
