"""A right spec over a model folder, for tests to break."""

import json
from pathlib import Path

RIGHT = """# What does W4 cost?
name = "w4-cost"
seeds = [42, 43]

[[model]]
id = "model"

[[method]]
name = "rtn"
precisions = ["W4A16KV16-g128"]

[[benchmark]]
name = "tiny-easy"
num_samples = 50

[generation]
temperature = 0.6
max_tokens = 2048
thinking_budgets = [{}]
"""

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    """A folder with all that planning reads of a model: a config, and weights by their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")
    return folder
