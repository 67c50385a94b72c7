"""A PEFT adapter's directory, merged into a model's weights while they are loaded.

Read: LoRA (arXiv 2106.09685), rank-stabilised LoRA (2312.03732), DoRA (2402.09353), adapters of embeddings,
ranks and alphas by pattern, trained biases, modules that were trained whole, embeddings that were resized,
and trained rows of embeddings. Source: PEFT 0.21, github.com/huggingface/peft, src/peft/tuners/lora and
trainable_tokens. The file of weights says which matrices are adapted. A regular expression in target_modules
is not evaluated: the file has tensors for exactly what it matched.
"""
import dataclasses
import hashlib
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from redlite.errors import Error
from redlite.model.config import Config
from redlite.store.files import read_json, sha256_file
from redlite.store.text import short
from redlite.text.lazy_pattern import LazyPattern
from redlite.weights import fused, hf_files
from redlite.weights.fit import EMBEDDING, HEAD, parts_of
from redlite.weights.hf_files import Stored
from redlite.weights.merged import Merged, Replaced
from redlite.weights.source import ADAPTER_CONFIG

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
READ = {"peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern",
        "alpha_pattern", "target_modules", "modules_to_save", "bias", "fan_in_fan_out",
        "init_lora_weights", "ensure_weight_tying", "trainable_token_indices"}
# Fields of training, and those of which the file of weights shows the outcome.
HARMLESS = {"auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
            "peft_version", "layers_to_transform", "layers_pattern", "exclude_modules", "megatron_config",
            "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config",
            "qalora_group_size"}
# Fields that must be off: what they do is not read.
OFF = {"lora_bias", "use_qalora", "use_bdlora", "target_parameters", "layer_replication",
       "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config"}
INITS = (None, True, False, "gaussian", "eva", "orthogonal")  # the others change the base's weights as well
TENSOR = LazyPattern(r"base_model\.model\.(?P<module>.+?)\.(?:(?P<part>lora_A|lora_B|lora_embedding_A|"
                     r"lora_embedding_B|lora_magnitude_vector)(?:\.weight)?|"
                     r"token_adapter\.(?P<rows>trainable_tokens_delta)|"
                     r"(?P<base>base_layer\.|original_module\.|token_adapter\.base_layer\.)?"
                     r"(?:modules_to_save\.)?(?P<whole>weight|bias))")
ORIGINAL = "original_module."   # PEFT's name for what a trained module was before
LITERAL = LazyPattern(r"\^?(?:[A-Za-z0-9_-]|\\?\.)+\$?")
# What could make a regular expression take exponential time.
NESTED = LazyPattern(r"\)[*+?{]|\(\?|\\[1-9]|(?:[*+?{].*){4}")


class Update(NamedTuple):
    """The adapter of one module: its tensors by their names in the file, and the factor of the update."""
    parts: dict[str, Stored]
    scale: float


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter whose configuration and tensors' names are checked; no number is read yet.

    path     its directory
    updates  module, such as "model.layers.0.self_attn.q_proj" → its update
    wholes   parameters that replace the base's: name → tensor
    kept     the base's own embedding and output, which PEFT may save as well: name → tensor
    tokens   parameters of which some rows are replaced: name → (their indices, the rows)
    follows  whether the rows of the embedding are the output's too, which needs a model that ties them
    tying    whether the adapter says that a trained embedding is tied to the output
    """
    path: Path
    updates: dict[str, Update]
    wholes: dict[str, Stored]
    kept: dict[str, Stored]
    tokens: dict[str, tuple[list[int], Stored]]
    follows: bool
    tying: bool

    def sha256(self) -> str:
        """SHA-256 over the names and hashes of its two files. Raises Error if one cannot be read."""
        whole = hashlib.sha256()
        for file in (self.path / ADAPTER_CONFIG, _weights(self.path)):
            whole.update(f"{file.name} {sha256_file(file)}\n".encode())
        return whole.hexdigest()

    def config(self, config: Config) -> Config:
        """The configuration of the merged model: its vocabulary is that of an embedding that the adapter
        brings, and an output that is no longer the embedding is untied.

        Raises Error where PEFT would keep the two tied although the adapter changes one, and for an embedding
        of another size without an output of that size.
        """
        config = dataclasses.replace(config, vocab_size=self._vocabulary(config))
        if self.follows and not config.tied:
            raise Error(f"{self.path / ADAPTER_CONFIG}: trainable_token_indices has rows for the embedding "
                        "alone, which the base does not use as its output; "
                        "give the base that the adapter was trained on")
        changed = {name for name in (EMBEDDING, HEAD)
                   if name in self.wholes or name.removesuffix(".weight") in self.updates}
        if HEAD in self.tokens:
            changed.add(HEAD)
        if not config.tied or not changed:
            return config
        if self.tying:
            raise Error(f"{self.path / ADAPTER_CONFIG}: ensure_weight_tying is not supported where the "
                        f"adapter changes {min(changed)} of a model that ties it; merge it with PEFT")
        return dataclasses.replace(config, tied=False)

    def _vocabulary(self, config: Config) -> int:
        """The rows of the embedding and of the output: the adapter's, where it has them whole."""
        own = {name: t for name, t in (self.kept | self.wholes).items() if name in (EMBEDDING, HEAD)}
        sizes = {t.shape[0] for t in own.values() if t.shape}
        if sizes <= {config.vocab_size}:
            return config.vocab_size
        both = len(own) == 2 or config.tied and not self.wholes.keys() & own.keys()
        if len(sizes) > 1 or not both:
            first = next(t for t in own.values() if t.shape and t.shape[0] != config.vocab_size)
            raise Error(f"{first.where} has shape {list(first.shape)} for a vocabulary of "
                        f"{config.vocab_size}, and the adapter has no {EMBEDDING} and {HEAD} of one size; "
                        "save it with save_embedding_layers=True, or give the base that it was trained on")
        return sizes.pop()

    def merged(self, stored: dict[str, Stored], config: Config) -> dict[str, Stored]:
        """The model's tensors with the adapter in them.

        stored  the base's tensors, under the names of our parameters
        config  what `self.config` gave
        Raises Error for a module that the base does not have, or has in another shape.
        """
        found = dict(stored)
        if not config.tied and HEAD not in found and EMBEDDING in found:
            found[HEAD] = found[EMBEDDING]
        # Of a tied model PEFT saves one of the two, which is the other as well, or both, which are equal.
        kept = self.kept
        if len(kept) == 1 and kept.keys() <= {EMBEDDING, HEAD}:
            both = (EMBEDDING, HEAD) if HEAD in found else (EMBEDDING,)
            kept = dict.fromkeys(both, next(iter(kept.values())))
        elif config.tied and HEAD not in found:
            kept = {name: t for name, t in kept.items() if name != HEAD}
        for name, tensor in fused.split(kept | self.wholes, config).items():
            if name in found:
                first = (config.vocab_size,) if name in (EMBEDDING, HEAD) else found[name].shape[:1]
                _check_shape(tensor, (*first, *found[name].shape[1:]), name)
            found[name] = tensor
        for module, update in self.updates.items():
            for name, part in _parts(module, update, config):
                where = next(iter(part.parts.values())).where
                if name not in found:
                    raise Error(f"{where} belongs to no matrix of the model; "
                                "give the base that the adapter was trained on")
                found[name] = _merged(found[name], part.parts, part.scale, where)
        for name, (indices, rows) in self._tokens(found, config).items():
            _check_shape(rows, (len(indices), *found[name].shape[1:]), name)
            if max(indices) >= config.vocab_size:
                raise Error(f"{rows.where} is for token {max(indices)} of a vocabulary of "
                            f"{config.vocab_size}; give the base that the adapter was trained on")
            found[name] = Replaced(found[name], indices, rows)
        return found

    def _tokens(self, found: dict[str, Stored], config: Config) -> dict[str, tuple[list[int], Stored]]:
        """`tokens`, with those of a tied output, where the base's files have that as well."""
        if config.tied and HEAD in found and EMBEDDING in self.tokens:
            return {**self.tokens, HEAD: self.tokens[EMBEDDING]}
        return self.tokens


def _check_shape(tensor: Stored, wanted: tuple[int, ...], name: str) -> None:
    if tensor.shape != wanted:
        raise Error(f"{tensor.where} has shape {list(tensor.shape)} and the base's {name} "
                    f"needs {list(wanted)}; give the base that the adapter was trained on")


def _parts(module: str, update: Update, config: Config) -> list[tuple[str, Update]]:
    """(parameter, update) of a module; of a fused one each part, which has its rows of B and A whole."""
    tall = [name for name in ("lora_B", "lora_magnitude_vector") if name in update.parts]
    if not tall:
        return [(f"{module}.weight", update)]
    parts = parts_of(module, update.parts["lora_B"], config)
    if len(parts) == 1:
        return [(f"{module}.weight", update)]
    return [(f"{part}.weight", update._replace(parts=update.parts | {
        name: fused.rows_of(update.parts[name], rows.start, len(rows)) for name in tall}))
        for part, rows in parts]


def _merged(base: Stored, parts: dict[str, Stored], scale: float, where: str) -> Merged:
    """A matrix with its update, their shapes compared."""
    embedding = "lora_embedding_A" in parts
    kind = "lora_embedding_" if embedding else "lora_"
    a, b, magnitude = parts[kind + "A"], parts[kind + "B"], parts.get("lora_magnitude_vector")
    rows, columns = base.shape[::-1] if embedding else base.shape
    wrong = a.shape[1:] != (columns,) or b.shape[:1] != (rows,)
    if wrong or magnitude is not None and magnitude.shape != (rows,):
        raise Error(f"{where}: its shapes do not fit the base's {list(base.shape)}; "
                    "give the base that the adapter was trained on")
    return Merged(base, a, b, scale, magnitude, embedding)


# ---- reading a directory ----

def read(path: str | Path) -> Adapter:
    """Read an adapter's directory.

    Raises Error for a file that is missing or damaged, a kind of adapter other than LoRA, and any field or
    tensor that would change the result and is not understood, by name.
    """
    path = Path(path)
    where = path / ADAPTER_CONFIG
    if not where.is_file():
        raise Error(f"{path}: has no {ADAPTER_CONFIG}; a directory that PEFT wrote is needed", "adapter")
    raw = read_json(where)
    if not isinstance(raw, dict):
        raise Error(f"{where}: a JSON object is needed")
    _check_fields(raw, where)
    saved = raw.get("modules_to_save") or []
    groups: dict[str, dict[str, Stored]] = {}
    wholes: dict[str, Stored] = {}
    kept: dict[str, Stored] = {}
    rows: dict[str, Stored] = {}
    found = hf_files.tensors_of(_weights(path))
    hf_files.check_plain(found)
    for name, tensor in found.items():
        match = TENSOR.fullmatch(name)
        if match is None:
            raise Error(f"{tensor.where} is of no kind that redlite reads (LoRA, DoRA, trained modules)")
        if match["part"]:
            groups.setdefault(match["module"], {})[match["part"]] = tensor
        elif match["rows"]:
            rows[f"{match['module']}.weight"] = tensor
        else:
            name = f"{match['module']}.{match['whole']}"
            frozen = match["base"] or name in (EMBEDDING, HEAD) and not _ends_in(match["module"], saved)
            plain = match["whole"] == "weight" or match["base"] == ORIGINAL
            (kept if frozen and plain else wholes)[name] = tensor
    updates = {}
    for module, parts in groups.items():
        updates[module] = _update(module, parts, raw, where)
    _check_modules(raw, where, groups.keys(), wholes)
    tokens, follows = _token_rows(raw, where, rows)
    return Adapter(path, updates, wholes, kept, tokens, follows, bool(raw.get("ensure_weight_tying")))


def _token_rows(raw: dict, where: Path, rows: dict[str, Stored]) -> tuple[dict, bool]:
    """`Adapter.tokens` and `follows`, from trainable_token_indices and the rows in the file.

    The field is a list for the embedding, or an object: module → list. Of equal lists for the embedding and
    a tied output PEFT may save the rows once, and of one list twice.
    """
    given: Any = raw.get("trainable_token_indices") or {}
    given = {"embed_tokens": given} if isinstance(given, list) else given
    listed: dict[str, list[int]] = {}
    for module, indices in given.items() if isinstance(given, dict) else [("?", given)]:
        named = [name for name in (EMBEDDING, HEAD) if _ends_in(name.removesuffix(".weight"), [module])]
        sound = isinstance(indices, list) and all(type(i) is int and i >= 0 for i in indices)
        if not named or not sound or not indices or len(set(indices)) < len(indices):
            raise Error(f"{where}: trainable_token_indices has {short({module: indices})}; different ids of "
                        "tokens for embed_tokens or lm_head are needed")
        listed[named[0]] = indices
    follows = EMBEDDING in listed and listed.get(HEAD, listed[EMBEDDING]) == listed[EMBEDDING] and (
        (HEAD in listed) != (HEAD in rows))
    if follows:
        listed.pop(HEAD, None)
        rows = {name: tensor for name, tensor in rows.items() if name != HEAD}
    if listed.keys() != rows.keys():
        raise Error(f"{where}: trainable_token_indices and the file of weights differ on "
                    f"{min(listed.keys() ^ rows.keys())}; fetch the adapter again")
    return {name: (indices, rows[name]) for name, indices in listed.items()}, follows


def _weights(path: Path) -> Path:
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise Error(f"{path}: has no {WEIGHTS[0]}; fetch the adapter again")


def _check_fields(raw: dict, where: Path) -> None:
    """Raises Error for a field that changes the result and is not understood."""
    if raw.get("peft_type") != "LORA":
        raise Error(f"{where}: peft_type is {short(raw.get('peft_type'))}; redlite reads LORA")
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise Error(f"{where}: task_type is {short(raw['task_type'])}; redlite runs CAUSAL_LM")
    if not _one_of(raw.get("init_lora_weights"), INITS):
        found = short(raw["init_lora_weights"])
        raise Error(f"{where}: init_lora_weights {found} changes the base's weights too; "
                    "convert the adapter to plain LoRA with PEFT, or merge it there")
    if not _one_of(raw.get("bias"), (None, "none", "all", "lora_only")):
        raise Error(f"{where}: bias is {short(raw['bias'])}; none, all or lora_only is needed")
    for name in ("use_rslora", "use_dora", "fan_in_fan_out", "ensure_weight_tying"):
        if not _one_of(raw.get(name), (None, True, False)):
            raise Error(f"{where}: {name} is {short(raw[name])}; true or false is needed")
    if raw.get("fan_in_fan_out"):
        raise Error(f"{where}: fan_in_fan_out is true, which is right for GPT-2's matrices alone; "
                    "redlite runs no such model")
    for name in ("target_modules", "modules_to_save"):
        names = raw.get(name)
        fine = isinstance(names, list) and all(type(n) is str for n in names)
        if not fine and not (isinstance(names, str) if name == "target_modules" else names is None):
            raise Error(f"{where}: {name} is {short(names)}; a list of names is needed")
    unknown = [name for name, value in raw.items()
               if value is not None and name not in READ | HARMLESS and not (name in OFF and not value)]
    if unknown:
        more = f" (and {len(unknown) - 1} more fields)" if len(unknown) > 1 else ""
        raise Error(f"{where}: field {short(min(unknown))}{more} is not known to redlite and might change "
                    "the result; merge the adapter with PEFT")


def _one_of(value: Any, allowed: tuple) -> bool:
    """Whether a JSON value is one of these; 1 is not true."""
    return any(value is a or isinstance(a, str) and value == a for a in allowed)


def _update(module: str, parts: dict[str, Stored], raw: dict, where: Path) -> Update:
    """The update of one module: its pair of tensors, and alpha / rank, or alpha / √rank."""
    embedding = any(name.startswith("lora_embedding_") for name in parts)
    pair = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    first = next(iter(parts.values())).where
    extra = {"lora_magnitude_vector"} if raw.get("use_dora") and not embedding else set()
    if not set(pair) <= set(parts) <= {*pair, *extra} or extra - set(parts):
        raise Error(f"{first}: module {short(module)} has {', '.join(sorted(parts))}; "
                    f"{', '.join([*pair, *extra])} are needed")
    a, b = parts[pair[0]], parts[pair[1]]
    rank = _number("r", _by_pattern(raw, "rank_pattern", module, where, raw.get("r")), where)
    alpha = _by_pattern(raw, "alpha_pattern", module, where, raw.get("lora_alpha"))
    alpha = _number("lora_alpha", alpha, where)
    if len(a.shape) != 2 or len(b.shape) != 2 or not a.shape[0] == b.shape[1] == rank or rank < 1:
        raise Error(f"{first} has shape {list(parts[pair[0]].shape)}, which does not fit rank {rank:g}")
    return Update(parts, alpha / math.sqrt(rank) if raw.get("use_rslora") else alpha / rank)


def _number(name: str, value: Any, where: Path) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e9:
        raise Error(f"{where}: {name} (or its pattern) is {short(value)}; a number is needed")
    return float(value)


def _by_pattern(raw: dict, field: str, module: str, where: Path, default: Any) -> Any:
    """The value of the first pattern that fits the end of a module's name, as PEFT reads them."""
    patterns = raw.get(field) or {}
    if not isinstance(patterns, dict):
        raise Error(f"{where}: {field} is {short(patterns)}; an object is needed")
    for key, value in patterns.items():
        if not LITERAL.fullmatch(key) and (NESTED.search(key) or len(key) > 200):
            raise Error(f"{where}: {field} has {short(key)}, a regular expression that may take for ever; "
                        "write the modules' names out")
        try:
            pattern = re.compile(rf"(?:{key})\Z")
        except (re.error, OverflowError, RecursionError):
            raise Error(f"{where}: {field} has {short(key)}, which is no regular expression") from None
        starts = [0, *(i + 1 for i, c in enumerate(module) if c == ".")]
        if any(pattern.match(module, i) for i in starts):
            return value
    return default


def _ends_in(module: str, names: list[str]) -> bool:
    """Whether a module is one of those that names, such as "q_proj", mean."""
    return f".{module}".endswith(tuple(f".{name}" for name in names))


def _check_modules(raw: dict, where: Path, adapted: Any, wholes: dict[str, Stored]) -> None:
    """Raises Error where the tensors are not those of the modules that the configuration lists."""
    targets, saved = raw.get("target_modules"), raw.get("modules_to_save") or []
    if isinstance(targets, list):
        stray = [module for module in adapted if not _ends_in(module, targets)]
        unused = [target for target in targets if not any(_ends_in(module, [target]) for module in adapted)]
        if stray or unused:
            raise Error(f"{where}: target_modules and the file of weights differ on "
                        f"{short((stray + unused)[0])}; fetch the adapter again")
    for name in saved:
        if not any(_ends_in(whole.rpartition(".")[0], [name]) for whole in wholes):
            raise Error(f"{where}: modules_to_save has {short(name)}, of which the file of weights has "
                        "nothing; fetch the adapter again")
