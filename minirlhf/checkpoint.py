"""A Hugging Face model folder: config.json and model.safetensors, read with care and written whole.

Folders come from strangers. Nothing in them is executed, sizes and shapes are checked before a
model is built, and every refusal names the file and the remedy.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minirlhf import UserError, architectures, files

SIZES = (
    "vocab_size",
    "n_positions",
    "n_embd",
    "n_layer",
    "n_head",
    "n_kv_head",
    "head_dim",
    "n_inner",
)
MAY_BE_NONE = ("n_inner", "n_kv_head", "head_dim")
LARGEST_SIZE = 10**7
MOST_LAYERS = 1000
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load('pytorch_model.bin', weights_only=True); "
    "s.save_file({k: v.clone() for k, v in w.items()}, 'model.safetensors')\""
)


# ---- config.json


def read_config(folder: Path, config_class: type, overrides: dict[str, Any]) -> tuple[Any, bool]:
    """config.json as a config_class (model.Config), and whether the folder holds a reward model.

    overrides replace fields. Raises UserError for a folder that has no config.json, and for
    whatever model.py cannot represent.
    """
    path = folder / "config.json"
    if (folder / "adapter_config.json").exists() and not path.exists():
        raise UserError(
            f"{folder} holds a PEFT adapter without its model: merge the two with peft's "
            "merge_and_unload and save the whole model"
        )
    if not path.exists():
        raise UserError(
            f"{path} does not exist: a model folder holds config.json, model.safetensors and the "
            "tokenizer's files, as each train_*.py writes them"
        )
    content = files.read_json(path)
    config = config_class(**(architectures.read(content, path) | overrides))
    check_config(config, path)
    return config, architectures.has_scalar_head(content)


def check_config(config: Any, path: Path) -> None:
    """Raises UserError for a number that no model has."""

    def check(name: str, is_valid: bool) -> None:
        if not is_valid:
            field = architectures.field_name(name, config)
            value = getattr(config, name)
            raise UserError(f"{path}: {field} cannot be {value!r:.99}: copy the file again")

    for name in SIZES:
        size = getattr(config, name)
        if size is not None or name not in MAY_BE_NONE:
            check(name, type(size) is int and 0 < size <= LARGEST_SIZE)
    for name in ("layer_norm_epsilon", "score_mean", "score_std", "rope_theta"):
        check(name, is_number(getattr(config, name)))
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        check(name, type(getattr(config, name)) is bool)
    check("n_layer", config.n_layer <= MOST_LAYERS)
    check("layer_norm_epsilon", config.layer_norm_epsilon >= 0)
    check("score_std", config.score_std > 0)
    check("n_head", config.head_dim is not None or config.n_embd % config.n_head == 0)
    if config.model_type != "gpt2":
        check("n_inner", config.n_inner is not None)
        check("n_kv_head", config.n_head % config.kv_heads == 0)
        check("head_dim", config.head_width % 2 == 0)
        check("head_dim", config.n_head * config.head_width <= LARGEST_SIZE)
        check("rope_theta", config.rope_theta >= 1)
        check("rope_scaling", config.rope_scaling is None or is_scaling(config.rope_scaling))


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e12 < value < 1e12


def is_scaling(scaling: dict[str, Any]) -> bool:
    """Whether Llama 3's rotary positions can be computed with these numbers."""
    numbers = [scaling[name] for name in architectures.LLAMA3_SCALING]
    if not all(is_number(number) and number > 0 for number in numbers):
        return False
    return scaling["low_freq_factor"] < scaling["high_freq_factor"]


# ---- safetensors files


def checksum(tensors: dict[str, Tensor], text: str = "") -> str:
    """CRC-32 of a text, and of contiguous CPU tensors and their names, in the names' order."""
    crc = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. Raises UserError if it is damaged.

    The tensors are views of the file: copy what must outlive its replacement.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("it is missing, or no regular file")
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
        if header_size > files.LARGEST_FILE:
            raise ValueError(f"a header of {header_size} bytes")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # what is raised depends on the damage
        reason = str(error).split("\n")[0][:200]
        raise UserError(f"{path} cannot be read ({reason}): copy it again") from None
    expected = metadata.pop("checksum", None)
    if expected and expected != checksum(tensors, str(sorted(metadata.items()))):
        raise UserError(f"{path} is damaged (its checksum is wrong): copy it again")
    return tensors, metadata


def write_tensors(path: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    """Write a safetensors file atomically; equal tensors give equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata["checksum"] = checksum(tensors, str(sorted(metadata.items())))
    with files.atomically(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)  # the library hides its files from other users
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Rewrite a safetensors header in place: the library writes metadata in random order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False)  # as long as before
        file.write(content.encode().ljust(size))


# ---- a model's weights


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the parts that its index names."""
    whole = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    legacy = folder / "pytorch_model.bin"
    if whole.exists():
        return [whole]
    if index.exists():
        return _indexed_files(index)
    if legacy.exists():
        raise UserError(f"{legacy} is a pickle, which can run code: convert it with {CONVERT}")
    raise UserError(f"{whole} does not exist: copy the model's weights into {folder}")


def _indexed_files(index: Path) -> list[Path]:
    weight_map = files.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: copy it again")
    for name in weight_map.values():
        is_plain = isinstance(name, str) and name.endswith(".safetensors")
        if not is_plain or "/" in name or "\\" in name:
            raise UserError(f"{index} names {name!r:.99}, no file of this folder: do not trust it")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder under Hugging Face's names, without "transformer." or "model."."""
    weights = {}
    for path in weight_files(folder):
        tensors, _ = read_tensors(path)
        for name, tensor in tensors.items():
            name = without_prefix(name)
            if name in weights:
                raise UserError(f"{path} holds a tensor {name!r:.99} a second time: copy it again")
            weights[name] = tensor
    return weights


def without_prefix(name: str) -> str:
    """A headless model's files have no prefix, so we read all as if they had none."""
    return name.removeprefix("transformer.").removeprefix("model.")


def from_hf(
    tensors: dict[str, Tensor],
    shapes: dict[str, torch.Size],
    config: Any,
    where: Path,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Hugging Face's tensors -> weights under our names, in our layout, in memory of their own.

    tensors: as read_weights returns them. shapes: our names and shapes.
    Raises UserError for a missing, misshapen, non-finite or unknown tensor.
    """
    unused = dict(tensors)
    stored = {}  # before anything is copied, all must be there
    for name, shape in shapes.items():
        transposed = architectures.is_transposed(name, config)
        stored[name] = []
        for hf_name, rows in architectures.hf_tensors(name, shape[0], config):
            expected = (rows, *shape[1:])
            if transposed:
                expected = expected[::-1]
            part = take(unused, without_prefix(hf_name), expected, where)
            stored[name].append(part.T if transposed else part)
    weights = {}
    for name, parts in stored.items():
        weights[name] = torch.cat([part.to(dtype) for part in parts])
        low, high = weights[name].aminmax()  # NaN if there is one
        if not (low.isfinite() and high.isfinite()):
            hf_name, _ = architectures.hf_tensors(name, len(weights[name]), config)[0]
            raise UserError(f"{where}: {hf_name} has values that are not finite: copy it again")
    check_unused(unused, weights, where)
    return weights


def take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], where: Path) -> Tensor:
    """Remove and return a tensor. Raises UserError if it is missing or of another kind."""
    if name not in tensors:
        raise UserError(f"{where} has no tensor {name}, but its config.json needs it")
    tensor = tensors.pop(name)
    if tensor.shape != shape:
        raise UserError(
            f"{where}: {name} has shape {tuple(tensor.shape)}, its config.json says {shape}"
        )
    if tensor.dtype not in DTYPES:
        raise UserError(
            f"{where}: {name} is {tensor.dtype}, which is not supported: use a copy of the model "
            "in bfloat16 or float32"
        )
    return tensor


def check_unused(unused: dict[str, Tensor], weights: dict[str, Tensor], where: Path) -> None:
    """A tied language model's output weights, if stored, must be its token embedding."""
    embedding = weights["wte.weight"]
    if "lm_head.weight" in unused and "score.weight" not in weights:
        head = take(unused, "lm_head.weight", tuple(embedding.shape), where)
        if not torch.equal(head.to(embedding.dtype), embedding):
            raise UserError(
                f"{where}: lm_head.weight is not the token embedding: "
                "set tie_word_embeddings to false in config.json"
            )
    for name in unused:
        if name != "lm_head.weight" and not name.endswith(architectures.NOT_WEIGHTS):
            raise UserError(f"{where}: config.json does not explain a tensor {name!r:.99}")


def to_hf(weights: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Our weights -> tensors under Hugging Face's names and in its layout."""
    tensors = {}
    for name, weight in weights.items():
        stored = architectures.hf_tensors(name, len(weight), config)
        parts = weight.split([rows for _, rows in stored])
        for (hf_name, _), part in zip(stored, parts):
            tensors[hf_name] = part.T if architectures.is_transposed(name, config) else part
    return tensors


def write_folder(
    folder: Path, content: dict[str, Any], weights: dict[str, Tensor], config: Any
) -> None:
    """Write config.json and then model.safetensors, with which the folder is complete."""
    files.write_json(folder / "config.json", content)
    write_tensors(folder / "model.safetensors", to_hf(weights, config), format="pt")


# ---- how a model is sampled


def read_temperature(folder: Path) -> float | None:
    """What generation_config.json says; None where it says nothing."""
    value = files.read_json(folder / "generation_config.json").get("temperature")
    return float(value) if is_number(value) and 0 < value < 1e6 else None


def write_generation(folder: Path, config: dict[str, Any], temperature: float | None) -> None:
    """generation_config.json, by which transformers and vLLM sample. None: as they like."""
    path = folder / "generation_config.json"
    if temperature is None:
        path.unlink(missing_ok=True)
        return
    tokens = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}  # of all tokens
    files.write_json(path, tokens | sampling)
