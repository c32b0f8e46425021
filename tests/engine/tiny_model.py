"""A random Qwen2 with a character tokenizer: of the shape of the real thing, and served within seconds."""

from __future__ import annotations

import string
from pathlib import Path

SPECIAL = ["<pad>", "<eos>", "<unk>", "<|user|>", "<|assistant|>"]
WORDS = ["<think>", "</think>", "Wait"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """Token -> id: special tokens, the three words of reasoning, printable ASCII and the newline."""
    characters = [c for c in string.printable if c not in "\t\r\x0b\x0c"]
    return {token: i for i, token in enumerate(SPECIAL + WORDS + characters)}


def write_tokenizer(folder: Path) -> None:
    """One character a token, the words of WORDS single tokens.

    A `Qwen2Tokenizer` because transformers loads every model of type qwen2 with it, whatever tokenizer.json says.
    """
    from transformers import AddedToken, Qwen2Tokenizer

    byte_level = {" ": "\u0120", "\n": "\u010a"}
    tokenizer = Qwen2Tokenizer(
        vocab={byte_level.get(token, token): i for token, i in vocabulary().items()},
        merges=[],
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in WORDS])
    tokenizer.save_pretrained(folder)


def write_model(folder: Path, tied: bool = False, hidden: int = 128, layers: int = 4, std: float = 0.08) -> Path:
    """A `Qwen2ForCausalLM` checkpoint with random weights in `folder`.

    Weights are wide enough that sampling wanders, and the tokens that budgets are about are likelier than the others.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    size = len(vocabulary())
    config = Qwen2Config(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=4096,
        initializer_range=std,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=vocabulary()["<eos>"],
        pad_token_id=vocabulary()["<pad>"],
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=std)
        for token in ("</think>", "<eos>", "Wait"):
            model.lm_head.weight[vocabulary()[token]] *= 2.0
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder
