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

LARGEST = {
    "vocab_size": 10**7,
    "n_positions": 10**7,
    "n_embd": 10**5,
    "n_layer": 1000,
    "n_head": 10**5,
    "n_kv_head": 10**5,
    "head_dim": 10**5,
    "n_inner": 10**6,
}
MAY_BE_NONE = ("n_inner", "n_kv_head", "head_dim")
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

    for name, largest in LARGEST.items():
        size = getattr(config, name)
        if size is not None or name not in MAY_BE_NONE:
            check(name, type(size) is int and 0 < size <= largest)
    for name in ("layer_norm_epsilon", "score_mean", "score_std", "rope_theta"):
        check(name, is_number(getattr(config, name)))
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        check(name, type(getattr(config, name)) is bool)
    check("score_std", config.score_std > 0)
    check("n_head", config.head_dim is not None or config.n_embd % config.n_head == 0)
    if config.model_type != "gpt2":
        check("n_inner", config.n_inner is not None)
        check("n_kv_head", config.n_head % config.kv_heads == 0)
        check("head_dim", config.head_width % 2 == 0)
        check("rope_theta", config.rope_theta > 0)
        check("rope_scaling", config.rope_scaling is None or is_scaling(config.rope_scaling))


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e9 < value < 1e9


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
            weights[without_prefix(name)] = tensor
    return weights


def without_prefix(name: str) -> str:
    """A headless model's files have no prefix, so we read all as if they had none."""
    return name.removeprefix("transformer.").removeprefix("model.")


def from_hf(
    tensors: dict[str, Tensor], shapes: dict[str, torch.Size], config: Any, where: Path
) -> dict[str, Tensor]:
    """Hugging Face's tensors -> weights under our names and in our layout.

    tensors: as read_weights returns them. shapes: our names and shapes.
    Raises UserError for a missing, misshapen, non-finite or unknown tensor.
    """
    unused = dict(tensors)
    weights = {}
    for name, shape in shapes.items():
        transposed = architectures.is_transposed(name, config)
        parts = []
        for hf_name, rows in architectures.hf_tensors(name, shape[0], config):
            expected = (rows, *shape[1:])
            if transposed:
                expected = expected[::-1]
            parts.append(take(unused, without_prefix(hf_name), expected, where))
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        weights[name] = weight.T if transposed else weight
    check_tied_head(unused, weights, where)
    for name in unused:
        is_known = name in architectures.HEADS or name.endswith(architectures.NOT_WEIGHTS)
        if not is_known:
            raise UserError(f"{where}: config.json does not explain a tensor {name!r:.99}")
    return weights


def take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], where: Path) -> Tensor:
    """Remove and return a tensor. Raises UserError if it is missing, misshapen or not finite."""
    if name not in tensors:
        raise UserError(f"{where} has no tensor {name}, but its config.json needs it")
    tensor = tensors.pop(name)
    if tensor.shape != shape:
        raise UserError(
            f"{where}: {name} has shape {tuple(tensor.shape)}, its config.json says {shape}"
        )
    check_finite(tensor, f"{where}: {name}")
    return tensor


def check_finite(tensor: Tensor, what: str) -> None:
    if not tensor.is_floating_point():
        raise UserError(f"{what} is {tensor.dtype}, not floating point: copy it again")
    if not tensor.to(torch.promote_types(tensor.dtype, torch.float32)).isfinite().all():
        raise UserError(f"{what} has values that are not finite: copy it again")


def check_tied_head(unused: dict[str, Tensor], weights: dict[str, Tensor], where: Path) -> None:
    """A tied language model's output weights, if stored, must be its token embedding."""
    head = unused.get("lm_head.weight")
    if head is None or "score.weight" in weights:
        return
    if not torch.equal(head.float(), weights["wte.weight"].float()):
        raise UserError(
            f"{where}: lm_head.weight is not the token embedding: "
            "set tie_word_embeddings to false in config.json"
        )


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
