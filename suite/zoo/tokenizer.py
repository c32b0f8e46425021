"""The embedded models' tokenizer: a real fast tokenizer, one token per character but for the words of the trace format.

Every text of printable ASCII, newlines and tabs survives the round trip exactly. Other characters become ``<|unk|>``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from suite.zoo.traces import ASSISTANT, END, THINK, USER, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN = "<|pad|>", "<|unk|>"
MAX_LENGTH = 4096
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    f"{{{{- '{ASSISTANT}' + message.content + '{END}' -}}}}"
    "{%- else -%}"
    f"{{{{- '{USER}' + message.content -}}}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{- '{ASSISTANT}{THINK}' -}}}}{{%- endif -%}}"
)


@cache
def token_ids() -> dict[str, int]:
    """Token text to id."""
    return {token: i for i, token in enumerate(vocabulary())}


def encode_tokens(tokens: list[str]) -> list[int]:
    """Ids of tokens as `traces` writes them; equal to what the tokenizer makes of the joined text."""
    ids = token_ids()
    return [ids[token] for token in tokens]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, ready for `save_pretrained`.

    Built as a `Qwen2Tokenizer` without merges: AutoTokenizer gives every Qwen2 model that class, whatever its files
    say, and puts the class's own byte-level splitting in place of any other. Characters are the vocabulary, words are
    added tokens.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    as_unicode = bytes_to_unicode()
    special = {USER, ASSISTANT, END, PAD, UNKNOWN}

    def spelled(token: str) -> str:
        return "".join(as_unicode[byte] for byte in token.encode()) if len(token) == 1 else token

    tokenizer = Qwen2Tokenizer(
        vocab={spelled(token): i for token, i in token_ids().items()},
        merges=[],
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        padding_side="left",
    )
    words = [token for token in token_ids() if len(token) > 1 and token not in special]
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into `folder`."""
    build_tokenizer().save_pretrained(folder)
