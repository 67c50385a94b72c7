"""Typed look-ups in a parsed config.json, with errors that name file, field and mend."""
from collections.abc import Callable
from typing import Any, TypeVar

from redlite.errors import Error

LARGEST = 1 << 24   # no dimension of a real model comes near; a corrupt file's does
NAMED = 5           # unknown fields that an error lists
T = TypeVar("T")

# Fields that do not change what the model computes at inference, or that other modules read.
HARMLESS = {
    "architectures", "attention_dropout", "attention_probs_dropout_prob", "attn_dropout",
    "attn_implementation", "attn_pdrop", "auto_map", "bad_words_ids", "begin_suppress_tokens", "bos_token",
    "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "classifier_dropout",
    "custom_pipelines", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "embd_pdrop", "embedding_dropout", "encoder_no_repeat_ngram_size", "eod_token_id",
    "eos_token", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task", "flash_attention",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "hidden_dropout",
    "hidden_dropout_prob", "id2label", "ignore_index", "init_std", "initializer_factor",
    "initializer_range", "is_decoder", "is_llama_config", "keys_to_ignore_at_inference", "label2id",
    "length_penalty", "license", "max_length", "max_new_tokens", "max_sequence_length", "max_window_layers",
    "min_length", "model_max_length", "model_name", "name_or_path", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_router_logits", "output_scores", "pad_token", "pad_token_id", "prefix",
    "pretraining_tp", "problem_type", "remove_invalid_values", "repetition_penalty", "resid_dropout",
    "resid_pdrop", "residual_dropout", "return_dict", "return_dict_in_generate", "suppress_tokens",
    "task_specific_params", "temperature", "tokenizer_class", "top_k", "top_p", "torch_dtype",
    "torchscript", "transformers.js_config", "transformers_version", "trust_remote_code", "typical_p",
    "unk_token_id", "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache", "use_flash_attention",
    "use_flash_attention_2", "use_flash_attn",
    "quantization_config",      # weights/quantised_safetensors.py reads it
}
# Fields of any family, which config.py reads.
READ = {
    "head_dim", "hidden_size", "intermediate_size", "is_causal", "layer_types", "max_position_embeddings",
    "model_type", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "original_max_position_embeddings", "partial_rotary_factor", "rope_parameters", "rope_scaling",
    "rope_theta", "sliding_window", "sliding_window_pattern", "tie_word_embeddings",
    "use_bidirectional_attention", "vocab_size",
}
# Switches that families lack, and whose `false` says so. Any other unknown false whose name speaks of the
# arithmetic is refused: it may turn off what the family has.
OFF = {
    "attention_bias", "attention_out_bias", "bias", "lm_head_bias", "mlp_bias", "post_norm", "qk_layernorm",
    "qk_norm", "qkv_bias", "rope_interleaved", "tie_encoder_decoder", "use_attention_gate", "use_bias",
    "use_mrope", "use_parallel_residual", "use_post_norm", "use_qk_norm", "use_qkv_bias",
    "use_sliding_window",
}
ARITHMETIC = ("act", "bias", "caus", "embed", "gate", "glu", "logit", "mask", "norm", "position", "residual",
              "rope", "rotary", "scal", "tie", "window")


class Reader:
    """Typed look-ups in one JSON object; `where` names it in errors."""

    def __init__(self, raw: Any, where: str):
        if not isinstance(raw, dict):
            raise Error(f"{where}: a JSON object is needed, not {type(raw).__name__}")
        self.raw, self.where = raw, where

    def refuse_unknown(self, known: set[str]) -> None:
        """Raises Error, which names some, for fields that are set and neither known nor harmless.

        Names that begin with an underscore are transformers' own notes.
        """
        unknown = [name for name in sorted(self.raw.keys() - HARMLESS - READ - known)
                   if not name.startswith("_") and self._counts(name)]
        if not unknown:
            return
        listed = ", ".join(f"{name[:26]!r}" for name in unknown[:NAMED])
        if len(unknown) > NAMED:
            listed += f" and {len(unknown) - NAMED} more"
        kind = str(self.raw.get("model_type"))[:40]
        many = ("fields", "are", "them if they do") if len(unknown) > 1 else ("field", "is", "it if it does")
        raise Error(f"{self.where}: {many[0]} {listed} {many[1]} not known to redlite for {kind} and might "
                    f"change the result; remove {many[2]} not")

    def _counts(self, name: str) -> bool:
        """Whether an unknown field says anything that might matter."""
        value = self.raw[name]
        if value is False:
            return name not in OFF and any(word in name.lower() for word in ARITHMETIC)
        return value not in (None, "", [], {})

    def _get(self, name: str, default: T | None, fits: Callable[[Any], bool], wanted: str) -> T:
        value = self.raw.get(name)
        if value is None:
            if default is None:
                raise Error(f"{self.where}: field {name!r} is missing; {wanted} is needed")
            return default
        if not fits(value):
            raise Error(f"{self.where}: field {name!r} is {str(value)[:60]!r}; {wanted} is needed")
        return value

    def size(self, name: str, default: int | None = None, least: int = 1, most: int = LARGEST) -> int:
        return self._get(name, default, lambda v: type(v) is int and least <= v <= most,
                         f"a whole number from {least} to {most}")

    def number(self, name: str, default: float | None = None, zero: bool = False) -> float:
        """A positive number; with `zero` also 0."""
        return float(self._get(name, default,
                               lambda v: type(v) in (int, float) and (0 < v < 1e18 or (zero and v == 0)),
                               "a positive number"))

    def flag(self, name: str, default: bool) -> bool:
        return self._get(name, default, lambda v: type(v) is bool, "true or false")

    def text(self, name: str, default: str | None = None) -> str:
        return self._get(name, default, lambda v: type(v) is str, "a name")

    def token(self, name: str) -> int | None:
        """A token id or None; -1 and lists (some configs hold them) are no id."""
        value = self.raw.get(name)
        return value if type(value) is int and value >= 0 else None

    def tokens(self, name: str) -> tuple[int, ...]:
        """One or more token ids."""
        value = self.raw.get(name)
        values = value if isinstance(value, list) else [value]
        return tuple(v for v in values if type(v) is int and v >= 0)
