"""A model's configuration from its files: a directory's config.json, or a GGUF file's metadata; no torch."""
import dataclasses
from pathlib import Path

from redlite.errors import Error
from redlite.model.config import Config
from redlite.store.files import read_json
from redlite.store.text import short
from redlite.weights import gguf_llama
from redlite.weights.gguf import GGUF
from redlite.weights.source import open_source

GENERATION_CONFIG = "generation_config.json"
# Of quantised weights: those of quantised_safetensors.READERS.
METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "awq", "gptq", "bitsandbytes")


def read_config(model: str | Path | GGUF) -> tuple[Config, dict]:
    """(The shape of a model, the raw config that it comes from).

    model  a directory with config.json, a .gguf file, or such a file opened

    End tokens that only generation_config.json names are added. The raw config of a GGUF file is its metadata
    in config.json's terms. Raises Error for an architecture that redlite does not run, and for any field that
    would change the result and is not understood.
    """
    source = open_source(model)
    if isinstance(source, GGUF):
        return gguf_llama.config_of(source)
    raw = read_json(source / "config.json")
    config = Config.from_hf(raw, str(source / "config.json"))
    quantisation(raw, str(source / "config.json"))
    if (source / GENERATION_CONFIG).exists():
        generation = read_json(source / GENERATION_CONFIG)
        ends = generation.get("eos_token_id") if isinstance(generation, dict) else None
        more = [e for e in (ends if isinstance(ends, list) else [ends]) if type(e) is int and e >= 0]
        config = dataclasses.replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *more))))
    return config, raw


def quantisation(raw: dict, where: str) -> str | None:
    """The quantisation that a config.json names; None: its weights are plain. Raises Error for another."""
    settings = raw.get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in METHODS:
        raise Error(f"{where}: quantization_config names the method {short(method)}; "
                    f"redlite reads {', '.join(METHODS)}")
    return method
