"""The model families: what their decoder's linear layers are called. A new family is a line here, and nothing else."""

from typing import Any

_GATED = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
# architecture in config.json -> the linears of one decoder layer, in the order in which data passes them
FAMILIES: dict[str, tuple[str, ...]] = {
    "Qwen2ForCausalLM": _GATED,
    "Qwen3ForCausalLM": _GATED,
    "LlamaForCausalLM": _GATED,
}


def decoder_linears(config: dict[str, Any]) -> list[str]:
    """Names of every decoder linear of a model, layer by layer: what all methods quantize.

    Embeddings, lm_head, norms and biases are never quantized (arXiv:2504.04823, appendix A).
    Raises: ValueError for a family that is not in the table.
    """
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(
            f"{architecture} is not a known model family ({known}): add a line to suite/modeling/families.py"
        )
    layers = range(config["num_hidden_layers"])
    return [f"model.layers.{layer}.{linear}" for layer in layers for linear in FAMILIES[architecture]]
