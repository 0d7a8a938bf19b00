"""transformers' text encoders with random weights, read from their files, equal ours in float64."""

import json
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from peers import in_float64, randomise, saved, tolerance, worst  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers.models.t5.modeling_t5 import T5LayerNorm  # noqa: E402

from tinydiff.checkpoint import write  # noqa: E402
from tinydiff.models import TextEncoder, TextEncoderConfig  # noqa: E402
from tinydiff.pretrained.tensors import open_tensors, read_json  # noqa: E402
from tinydiff.pretrained.text import load_text_encoder, place, write_config  # noqa: E402
from tinydiff.pretrained.weights import as_theirs  # noqa: E402

VOCABULARY = 99
USUAL = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
             num_attention_heads=4, bos_token_id=None, pad_token_id=0)
T5 = dict(vocab_size=VOCABULARY, d_model=32, d_ff=48, num_layers=3, num_heads=4, d_kv=8)


def clip(n=64, **options):
    config = transformers.CLIPTextConfig(**USUAL | dict(max_position_embeddings=n) | options)
    return transformers.CLIPTextModel(config)


def bert(**options):
    return transformers.BertModel(transformers.BertConfig(**USUAL | options))


def t5(**options):
    return transformers.T5EncoderModel(transformers.T5Config(**T5 | options))


CASES = {
    "CLIP, ends at the highest id":   partial(clip, eos_token_id=2),
    "CLIP, ends at the first of 98":  partial(clip, eos_token_id=98, hidden_act="gelu"),
    "CLIP of 2.x":                    partial(clip, eos_token_id=98, hidden_act="gelu",
                                              num_attention_heads=2, layer_norm_eps=1e-3),
    "BERT":                           bert,
    "BERT, GELU by tanh, one kind":   partial(bert, hidden_act="gelu_new", type_vocab_size=1),
    "BERT, ReLU, 8 heads":            partial(bert, hidden_act="relu", num_attention_heads=8),
    "T5":                             t5,
    "T5 1.1, heads wider than all":   partial(t5, feed_forward_proj="gated-gelu", num_heads=3,
                                              d_kv=12),
    "T5, gated SiLU, few buckets":    partial(t5, feed_forward_proj="gated-silu", num_heads=2,
                                              relative_attention_num_buckets=9,
                                              relative_attention_max_distance=20),
    "T5, plain GELU":                 partial(t5, feed_forward_proj="gelu",
                                              layer_norm_epsilon=1e-3),
}


@pytest.fixture(autouse=True)
def exact_rms(monkeypatch):
    """T5LayerNorm takes its mean in float32, even of float64."""
    monkeypatch.setattr(T5LayerNorm, "forward", lambda self, x: self.weight * (
        x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)))


def loaded(folder):
    file = folder / "config.json"
    return load_text_encoder(read_json(file), file, open_tensors(folder, "model"))


def texts(n, seed=0):
    """Three rows of ids and of a mask: one of all, one padded on the right, one on the left."""
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, (3, n))
    ids[1, n // 2:] = 98                                  # an end, several times
    mask = np.ones((3, n), np.int64)
    mask[1, n // 2 + 1:] = mask[2, :n // 3] = 0
    return ids, mask


def asked(theirs, ids, mask=None):
    mask = None if mask is None else torch.tensor(mask)
    with torch.no_grad():
        return theirs(torch.tensor(ids), attention_mask=mask, output_hidden_states=True)


@pytest.mark.parametrize("quiet", [1.0, 0.02])
@pytest.mark.parametrize("case", CASES)
def test_every_state_of_every_text_is_theirs(case, quiet, tmp_path):
    theirs = randomise(CASES[case](), 5, quiet)
    exact, ours = in_float64(theirs), loaded(saved(theirs, tmp_path))
    finer = loaded(tmp_path).astype(np.float64)
    for n in (1, 2, 7, 40, 64) + (300,) * case.startswith("T5"):
        ids, padding = texts(n)
        for mask in (None, None if case.startswith("CLIP") else padding):
            single, double = asked(theirs, ids, mask), asked(exact, ids, mask)
            want = double.last_hidden_state.numpy()
            hidden, pooled = ours.encode(ids, mask)
            assert hidden.dtype == np.float32
            assert worst(hidden, want) < tolerance(single.last_hidden_state, want)
            if case.startswith("T5"):
                assert pooled is None
            else:
                assert worst(pooled, double.pooler_output.numpy()) < 2e-5
            states = [state.data for state in finer.states(ids, mask)]
            assert len(states) == len(double.hidden_states) == 4
            if case.startswith("T5"):                     # theirs has been through the last norm
                states[-1] = finer.encode(ids, mask)[0]
            for got, state in zip(states, double.hidden_states):
                assert worst(got, state.numpy()) < 1e-12
            assert worst(finer.encode(ids, mask)[0], want) < 1e-12


def test_skipping_blocks_is_the_last_norm_on_an_earlier_state(tmp_path):
    theirs = in_float64(randomise(clip(eos_token_id=2), 6))
    ours, (ids, _) = loaded(saved(theirs, tmp_path)).astype(np.float64), texts(9)
    double = asked(theirs, ids)
    for skip in range(4):
        hidden, pooled = ours.encode(ids, skip=skip)
        with torch.no_grad():
            want = theirs.final_layer_norm(double.hidden_states[-(skip + 1)])
        assert worst(hidden, want.numpy()) < 1e-12
        assert worst(pooled, double.pooler_output.numpy()) < 1e-12


def rewritten(folder, change, **config):
    """The folder with its tensors changed, {key: tensor} both, and some keys of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    weights = {key: value.clone() for key, value in
               change(load_file(folder / "model.safetensors")).items()}
    save_file(weights, folder / "model.safetensors")


def prefixed(prefix, weights):
    return {f"{prefix}.{key}": value for key, value in weights.items()}


NOISE = torch.ones(3, 2)
OLD = {
    "CLIP's prefix and positions": (clip, lambda w: prefixed("text_model", w) | {
        "text_model.embeddings.position_ids": torch.arange(64)[None]}, {}),
    "all of CLIP": (clip, lambda w: prefixed("text_model", w) | {
        "vision_model.embeddings.class_embedding": NOISE, "text_projection.weight": NOISE,
        "visual_projection.weight": NOISE, "logit_scale": torch.tensor(4.6)},
        {"architectures": ["CLIPModel"]}),
    "BERT's prefix, norms and heads": (bert, lambda w: {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias",
                                                                  "LayerNorm.beta"): value
        for key, value in prefixed("bert", w).items()} | {
            "cls.predictions.bias": NOISE, "bert.embeddings.position_ids": torch.arange(64)[None]},
        {"architectures": ["BertForMaskedLM"]}),
    "T5's table under another name": (t5, lambda w: {
        key.replace("shared.", "encoder.embed_tokens."): value for key, value in w.items()}, {}),
    "T5's table under both": (t5, lambda w: w | {
        "encoder.embed_tokens.weight": w["shared.weight"].clone()}, {}),
    "T5 with its decoder": (t5, lambda w: w | {
        "decoder.block.0.layer.0.SelfAttention.q.weight": NOISE, "lm_head.weight": NOISE},
        {"architectures": ["T5ForConditionalGeneration"]}),
    "F16": (bert, lambda w: {key: value.half() for key, value in w.items()}, {}),
    "BF16": (t5, lambda w: {key: value.bfloat16() for key, value in w.items()}, {}),
}


@pytest.mark.parametrize("case", OLD)
def test_names_and_types_of_published_files_are_read(case, tmp_path):
    make, change, config = OLD[case]
    theirs = randomise(make(), 7)
    if case in ("F16", "BF16"):
        theirs = theirs.to(getattr(torch, {"F16": "float16", "BF16": "bfloat16"}[case])).float()
    rewritten(saved(theirs, tmp_path), change, **config)
    ids, _ = texts(11)
    want = asked(in_float64(theirs), ids).last_hidden_state.numpy()
    assert worst(loaded(tmp_path).encode(ids)[0], want) < 1e-5


def test_the_config_of_all_of_clip_has_the_texts_inside(tmp_path):
    theirs = randomise(clip(eos_token_id=98, hidden_act="gelu"), 8)
    config = json.loads((saved(theirs, tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(
        {"architectures": ["CLIPModel"], "text_config": config, "vision_config": {}}))
    ids, _ = texts(11)
    want = asked(in_float64(theirs), ids).last_hidden_state.numpy()
    assert worst(loaded(tmp_path).encode(ids)[0], want) < 1e-5


def test_a_bert_without_pooler_has_no_summary(tmp_path):
    theirs = randomise(bert(), 9)
    rewritten(saved(theirs, tmp_path), lambda w: {
        key: value for key, value in w.items() if not key.startswith("pooler")})
    ids, mask = texts(11)
    hidden, pooled = loaded(tmp_path).encode(ids, mask)
    assert pooled is None
    want = asked(in_float64(theirs), ids, mask).last_hidden_state.numpy()
    assert worst(hidden, want) < 1e-5


@pytest.mark.parametrize("broken", ["missing", "left over", "misshapen"])
@pytest.mark.parametrize("make", [clip, bert, t5])
def test_other_tensors_than_the_configs_are_refused(make, broken, tmp_path):
    saved(randomise(make(), 1), tmp_path)
    key = "encoder." + {clip: "layers.2.mlp.fc1.weight", bert: "layer.1.output.LayerNorm.bias",
                        t5: "block.2.layer.1.DenseReluDense.wo.weight"}[make]

    def change(weights):
        if broken == "left over":
            return weights | {key.replace("1", "3").replace("2", "3"): NOISE}
        lost = weights.pop(key)
        return weights if broken == "missing" else weights | {key: lost[1:]}

    rewritten(tmp_path, change)
    with pytest.raises(ValueError, match=rf"model.safetensors .*{broken}: encoder"):
        loaded(tmp_path)


def test_a_table_of_t5_that_stands_there_twice_must_be_one_table(tmp_path):
    saved(randomise(t5(), 1), tmp_path)
    keys = "shared.weight", "encoder.embed_tokens.weight"
    [table] = [w for key, w in load_file(tmp_path / "model.safetensors").items()
               if key in keys]
    both = dict.fromkeys(keys, table)
    rewritten(tmp_path, lambda w: w | both)
    np.testing.assert_array_equal(loaded(tmp_path).token.table.data, table)
    for key, other in ((keys[0], table + (table == table[3, 3])), (keys[1], table[:-1].clone()),
                       (keys[1], -table)):
        changed = both | {key: other}
        rewritten(tmp_path, lambda w, changed=changed: w | changed)
        with pytest.raises(ValueError, match=r"model\.safetensors.*(embed_tokens|shared)\.weight"):
            loaded(tmp_path)


@pytest.mark.parametrize("activation", ["gelu", "gelu_quick", "gelu_tanh", "relu", "silu"])
def test_ours_in_clips_form_goes_to_transformers_and_back(activation, tmp_path, rng):
    config = TextEncoderConfig(vocabulary=300, length=9, width=12, depth=2, heads=3, form="clip",
                               hidden=40, activation=activation, eps=1e-3, end=7)
    encoder = TextEncoder(config, rng=rng)
    for p in encoder.parameters().values():
        p.data += 0.3 * rng.standard_normal(p.shape, dtype=np.float32)
    (tmp_path / "config.json").write_text(json.dumps(write_config(config)))
    write(tmp_path / "model.safetensors", as_theirs(encoder, partial(place, "clip")),
          {"format": "pt"})
    theirs = transformers.CLIPTextModel.from_pretrained(tmp_path)
    ids = rng.integers(0, 300, (4, 9))
    ids[:, 5] = 7
    want = asked(in_float64(theirs), ids)
    for again in (encoder, loaded(tmp_path)):
        hidden, pooled = again.encode(ids)
        assert worst(hidden, want.last_hidden_state.numpy()) < 1e-5
        assert worst(pooled, want.pooler_output.numpy()) < 1e-5
    assert loaded(tmp_path).config == config
