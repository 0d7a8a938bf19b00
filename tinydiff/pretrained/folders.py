"""load(folder): a pipeline, a model, a tokenizer or a scheduler, by the files it is made of."""

from pathlib import Path

from tinydiff.pretrained import text, unet, vae
from tinydiff.pretrained.schedulers import load_scheduler
from tinydiff.pretrained.tensors import named, open_tensors, read_json
from tinydiff.pretrained.tokens import load_tokenizer

MODELS = {"UNet2DModel": unet.load_unet, "UNet2DConditionModel": unet.load_unet,
          "AutoencoderKL": vae.load_autoencoder,
          **dict.fromkeys(text.CLASSES, text.load_text_encoder)}


def load(folder):
    """What a folder of diffusers or transformers holds, with the methods of its kind.

    A model_index.json makes it a Pipeline, otherwise a config.json a UNet, an Autoencoder or a
    TextEncoder. Raises FileNotFoundError for what is missing, ValueError for what is not supported
    or damaged, in one sentence that names the file and the key.
    """
    from tinydiff.pretrained.pipeline import load_pipeline  # which loads its parts from here

    folder, saved = Path(folder), "name a folder that diffusers or transformers have saved"
    if folder.is_file():
        raise ValueError(f"{folder} is a file; {saved}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; {saved}")
    for name, read in {"model_index.json": load_pipeline, "config.json": load_model,
                       "scheduler_config.json": load_scheduler, "tokenizer.json": load_tokenizer,
                       "vocab.json": load_tokenizer, "vocab.txt": load_tokenizer}.items():
        if (folder / name).is_file():
            return read(folder)
    raise FileNotFoundError(f"{folder} holds no model_index.json, config.json, scheduler_config."
                            f"json, tokenizer.json or vocabulary; {saved}")


def load_model(folder):
    """The model that the config.json in a folder describes, with the weights beside it."""
    file = Path(folder, "config.json")
    theirs = read_json(file)
    names = theirs.get("architectures")
    name = theirs.get("_class_name", names[0] if isinstance(names, list) and names else None)
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"{file}: _class_name or architectures says {named(name)}, expected one "
                         f"of {', '.join(MODELS)}")
    base = "diffusion_pytorch_model" if "_class_name" in theirs else "model"
    try:
        return MODELS[name](theirs, file, open_tensors(folder, base))
    except MemoryError:
        raise ValueError(f"{file} describes a model too large for this machine") from None
