"""How Hugging Face describes the models that model.py computes: config.json, tensors' names.

GPT-2, and four models with Llama's block. What model.py cannot compute is refused by name.
"""

from pathlib import Path
from typing import Any

from minirlhf import UserError

CLASSES = {  # model_type in config.json: how the names of transformers' classes begin
    "gpt2": "GPT2",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}
GPT2_FIELDS = (  # of model.Config and, under the same names, of config.json
    "vocab_size",
    "n_positions",
    "n_embd",
    "n_layer",
    "n_head",
    "layer_norm_epsilon",
    "score_mean",
    "score_std",
    "n_inner",
    "tie_word_embeddings",
    "activation_function",
)
LLAMA_FIELDS = {  # of model.Config: of config.json, and the value where it is absent
    "vocab_size": ("vocab_size", None),
    "n_positions": ("max_position_embeddings", None),
    "n_embd": ("hidden_size", None),
    "n_layer": ("num_hidden_layers", None),
    "n_head": ("num_attention_heads", None),
    "n_kv_head": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "n_inner": ("intermediate_size", None),
    "layer_norm_epsilon": ("rms_norm_eps", 1e-6),
    "attention_bias": ("attention_bias", False),
    "mlp_bias": ("mlp_bias", False),
    "tie_word_embeddings": ("tie_word_embeddings", False),
    "score_mean": ("score_mean", 0.0),
    "score_std": ("score_std", 1.0),
}
# Fields of config.json that change the function, and the values that model.py computes
GPT2_SUPPORTED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}
LLAMA_SUPPORTED = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
}
LLAMA3_SCALING = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
ROTARY_FIELDS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *LLAMA3_SCALING)

# Our layers: Hugging Face's. GPT-2 stores the weights of these layers as (in, out).
GPT2_LAYERS = {
    "c_attn": "attn.c_attn",
    "c_proj": "attn.c_proj",
    "c_fc": "mlp.c_fc",
    "mlp_proj": "mlp.c_proj",
}
LLAMA_LAYERS = {  # the rows of several are stacked into one of ours
    "wte": ("embed_tokens",),
    "ln_1": ("input_layernorm",),
    "c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "c_proj": ("self_attn.o_proj",),
    "ln_2": ("post_attention_layernorm",),
    "c_fc": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp_proj": ("mlp.down_proj",),
    "ln_f": ("norm",),
}
HEADS = ("lm_head.weight", "score.weight")
# Causal masks and rotary speeds in old files
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


# ---- config.json


def read(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of model.Config that config.json gives. Their types are not checked.

    Raises UserError for what model.py cannot compute.
    """
    kind = content.get("model_type")
    if kind not in list(CLASSES):
        kinds = ", ".join(CLASSES)
        raise UserError(f"{path}: model_type is {kind!r:.99}; the models that work are {kinds}")
    if kind == "gpt2":
        check_supported(content, GPT2_SUPPORTED, path)
        return {name: content[name] for name in GPT2_FIELDS if name in content}
    check_supported(content, LLAMA_SUPPORTED, path)
    check_window(content, path)
    fields = {"model_type": kind} | read_rotary(content, path)
    for name, (hf_name, default) in LLAMA_FIELDS.items():
        fields[name] = content.get(hf_name, default)
    if kind == "qwen2":
        fields["attention_bias"] = True
    return fields


def check_supported(content: dict[str, Any], supported: dict[str, tuple], path: Path) -> None:
    for name, values in supported.items():
        value = content.get(name, values[0])
        if value not in values:
            raise UserError(f"{path}: {name} is {value!r:.99}, only {values[0]!r} works")


def check_window(content: dict[str, Any], path: Path) -> None:
    """Attention to the last `sliding_window` tokens alone works where no text is longer."""
    window = content.get("sliding_window", 4096)  # transformers' default
    is_used = content["model_type"] == "mistral" or content.get("use_sliding_window", False)
    if not is_used or window is None:
        return
    longest = content.get("max_position_embeddings")
    if type(window) is not int or type(longest) is not int or window < longest:
        raise UserError(
            f"{path}: sliding_window is {window!r:.99}, which is not supported for texts that are "
            "longer: set max_position_embeddings to the same number to use the model up to there"
        )


def read_rotary(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """rope_theta and rope_scaling. transformers 5 writes both into one field, rope_parameters."""
    name = "rope_scaling" if content.get("rope_scaling") else "rope_parameters"
    rotary = content.get(name) or {}
    if not isinstance(rotary, dict):
        raise UserError(f"{path}: {name} is {rotary!r:.99}, no object: copy the file again")
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"{path}: {name} is of type {kind!r:.99}, only 'llama3' works")
    check_supported(rotary, {"partial_rotary_factor": (1.0, None)}, path)
    for field in rotary:
        if field not in ROTARY_FIELDS:
            raise UserError(f"{path}: {name} has a field {field!r:.99}, which is not supported")
    theta = rotary.get("rope_theta", content.get("rope_theta", 10000.0))
    if kind == "default":
        return {"rope_theta": theta}
    scaling = {"rope_type": kind} | {field: rotary.get(field) for field in LLAMA3_SCALING}
    return {"rope_theta": theta, "rope_scaling": scaling}


def has_scalar_head(content: dict[str, Any]) -> bool:
    """Whether the folder holds a reward model."""
    return "ForSequenceClassification" in str(content.get("architectures"))


def field_name(name: str, config: Any) -> str:
    """How config.json calls a field of model.Config."""
    if config.model_type == "gpt2" or name not in LLAMA_FIELDS:
        return name
    return LLAMA_FIELDS[name][0]


def write(config: Any, is_scalar: bool, tokenizer: Any) -> dict[str, Any]:
    """The config.json of a model.Config that transformers 4 and 5 read."""
    is_gpt2 = config.model_type == "gpt2"
    head = "LMHeadModel" if is_gpt2 else "ForCausalLM"
    if is_scalar:
        head = "ForSequenceClassification"
    content = {"architectures": [CLASSES[config.model_type] + head]}
    if is_scalar:
        content |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
        if tokenizer.pad_id not in (None, tokenizer.eos_id):  # EOS is scored: it is no padding
            content["pad_token_id"] = tokenizer.pad_id
    content["model_type"] = config.model_type
    bos, stops = tokenizer.bos_id, list(tokenizer.stop_ids)
    eos = stops if len(stops) > 1 else tokenizer.eos_id
    if is_gpt2:
        content |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        content |= {"bos_token_id": tokenizer.eos_id if bos is None else bos, "eos_token_id": eos}
        return content | {name: getattr(config, name) for name in GPT2_FIELDS}
    content |= {"hidden_act": "silu", "bos_token_id": bos, "eos_token_id": eos}
    for name, (hf_name, _) in LLAMA_FIELDS.items():
        content[hf_name] = getattr(config, name)
    content |= {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.inner,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
    }
    if config.model_type == "mistral":
        content["sliding_window"] = None
    return content


# ---- tensors


def hf_tensors(name: str, rows: int, config: Any) -> list[tuple[str, int]]:
    """Hugging Face's tensors whose rows, stacked, are our parameter: their names and rows.

    h.0.c_fc.bias is GPT-2's transformer.h.0.mlp.c_fc.bias.
    """
    if name in HEADS:
        return [(name, rows)]
    *block, layer, kind = name.split(".")
    if config.model_type == "gpt2":
        parts = ["transformer", *block, GPT2_LAYERS.get(layer, layer), kind]
        return [(".".join(parts), rows)]
    heights = [rows]
    if layer == "c_attn":
        q, kv = config.n_head * config.head_width, config.kv_heads * config.head_width
        heights = [q, kv, kv]
    elif layer == "c_fc":
        heights = [config.inner, config.inner]
    where = f"model.layers.{block[1]}" if block else "model"
    names = [f"{where}.{hf_layer}.{kind}" for hf_layer in LLAMA_LAYERS[layer]]
    return list(zip(names, heights, strict=True))


def is_transposed(name: str, config: Any) -> bool:
    """Whether Hugging Face stores our parameter transposed."""
    layer, kind = name.split(".")[-2:]
    return config.model_type == "gpt2" and kind == "weight" and layer in GPT2_LAYERS
