"""A Hugging Face model folder: config.json and model.safetensors, read with care and written whole.

Folders come from strangers. Nothing in them is executed, sizes and shapes are checked before a
model is built, and every refusal names the file and the remedy.
"""

import json
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minirlhf import UserError, files

# Fields of config.json that change the function, and the values that model.py computes
SUPPORTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
LARGEST = {
    "vocab_size": 10**7,
    "n_positions": 10**7,
    "n_embd": 10**5,
    "n_layer": 1000,
    "n_head": 10**5,
    "n_inner": 10**6,
}
GPT2_LAYERS = {  # our name: Hugging Face's. GPT-2 stores the weights of these layers as (in, out)
    "c_attn": "attn.c_attn",
    "c_proj": "attn.c_proj",
    "c_fc": "mlp.c_fc",
    "mlp_proj": "mlp.c_proj",
}
HEADS = ("lm_head.weight", "score.weight")
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias")  # causal masks in old GPT-2 files
CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load('pytorch_model.bin', weights_only=True); "
    "s.save_file({k: v.clone() for k, v in w.items()}, 'model.safetensors')\""
)


# ---- config.json


def read_config(folder: Path, config_class: type, overrides: dict[str, Any]) -> Any:
    """config.json as a config_class, a dataclass with Hugging Face's field names.

    overrides replace the file's fields. Raises UserError for a folder that has none, and for
    whatever model.py cannot represent.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(
            f"{path} does not exist: a model folder holds config.json, model.safetensors and the "
            "tokenizer's files, as each train_*.py writes them"
        )
    raw = files.read_json(path) | overrides
    if raw.get("model_type") != "gpt2":
        raise UserError(f"{path}: model_type is {raw.get('model_type')!r:.99}, not 'gpt2'")
    for name, values in SUPPORTED.items():
        value = raw.get(name, values[0])
        if value not in values:
            raise UserError(f"{path}: {name} is {value!r:.99}, only {values[0]!r} works")
    names = [field.name for field in fields(config_class)]
    config = config_class(**{name: raw[name] for name in names if name in raw})
    check_config(config, path)
    return config


def check_config(config: Any, path: Path) -> None:
    """Raises UserError for a number that no model has."""

    def check(name: str, is_valid: bool) -> None:
        if not is_valid:
            value = getattr(config, name)
            raise UserError(f"{path}: {name} cannot be {value!r:.99}: copy the file again")

    for name, largest in LARGEST.items():
        size = getattr(config, name)
        if name == "n_inner" and size is None:
            continue
        check(name, type(size) is int and 0 < size <= largest)
    for name in ("layer_norm_epsilon", "score_mean", "score_std"):
        number = getattr(config, name)
        check(name, type(number) in (int, float) and -1e9 < number < 1e9)
    check("score_std", config.score_std > 0)
    check("n_head", config.n_embd % config.n_head == 0)
    check("tie_word_embeddings", type(config.tie_word_embeddings) is bool)


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
        file.write(json.dumps(header, separators=(",", ":")).encode().ljust(size))


# ---- a model's weights


def hf_name(name: str) -> str:
    """Our parameter's name -> Hugging Face's: h.0.c_fc.bias -> transformer.h.0.mlp.c_fc.bias."""
    if name in HEADS:
        return name
    *block, layer, kind = name.split(".")
    return ".".join(["transformer", *block, GPT2_LAYERS.get(layer, layer), kind])


def is_transposed(name: str) -> bool:
    """Whether Hugging Face stores our parameter transposed."""
    layer, kind = name.split(".")[-2:]
    return kind == "weight" and layer in GPT2_LAYERS


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
    """All tensors of a folder under Hugging Face's names, without "transformer."."""
    weights = {}
    for path in weight_files(folder):
        tensors, _ = read_tensors(path)
        for name, tensor in tensors.items():
            weights[name.removeprefix("transformer.")] = tensor
    return weights


def from_hf(
    tensors: dict[str, Tensor], shapes: dict[str, torch.Size], where: Path
) -> dict[str, Tensor]:
    """Hugging Face's tensors -> weights under our names and in our layout.

    tensors: as read_weights returns them. shapes: our names and shapes.
    Raises UserError for a missing, misshapen, non-finite or unknown tensor.
    """
    unused = dict(tensors)
    weights = {}
    for name, shape in shapes.items():
        theirs = hf_name(name).removeprefix("transformer.")
        if theirs not in unused:
            raise UserError(f"{where} has no tensor {theirs}, but its config.json needs it")
        tensor = unused.pop(theirs)
        expected = shape[::-1] if is_transposed(name) else shape
        if tensor.shape != expected:
            raise UserError(
                f"{where}: {theirs} has shape {tuple(tensor.shape)}, "
                f"its config.json says {tuple(expected)}"
            )
        check_finite(tensor, f"{where}: {theirs}")
        weights[name] = tensor.T if is_transposed(name) else tensor
    check_tied_head(unused, weights, where)
    for name in unused:
        if name not in HEADS and not name.endswith(NOT_WEIGHTS):
            raise UserError(f"{where}: config.json does not explain a tensor {name!r:.99}")
    return weights


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


def to_hf(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights -> tensors under Hugging Face's names and in its layout."""
    tensors = {}
    for name, weight in weights.items():
        tensors[hf_name(name)] = weight.T if is_transposed(name) else weight
    return tensors


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write config.json and then model.safetensors, with which the folder is complete."""
    files.write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", to_hf(weights), format="pt")
