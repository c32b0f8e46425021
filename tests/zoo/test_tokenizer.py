"""Tokenizer: exact round trips, one token per word of the format, a template that opens the thinking."""

import json
import random
import string

import pytest

from suite.zoo.problems import random_program
from suite.zoo.tokenizer import encode_tokens, save_tokenizer, token_ids
from suite.zoo.traces import ANSWER_CUE, BOX, END_THINK, PREAMBLE, THINK, WAIT, Mistakes, prompt_tokens, write_trace
from suite.zoo.train import Recipe, Shape


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The tokenizer as AutoTokenizer loads it from a model folder."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(Shape().config()))
    return AutoTokenizer.from_pretrained(folder)


def test_training_ids_are_the_tokenizer_s(tokenizer):
    """The ids that training uses are those the tokenizer gives to the text, and decoding returns the text."""
    rng = random.Random(0)
    for _ in range(100):
        program = random_program(rng, rng.randint(2, 8), "train")
        tokens = prompt_tokens(program) + write_trace(program, rng, Mistakes(0.2, 0.3, 0.3, 0.2)).tokens
        text = "".join(tokens)
        assert tokenizer(text).input_ids == encode_tokens(tokens)
        assert tokenizer.decode(encode_tokens(tokens)) == text


@pytest.mark.parametrize("word", [THINK, END_THINK, WAIT, PREAMBLE, BOX, "q:", "=q", "\nq"])
def test_words_are_single_tokens(tokenizer, word):
    """The words that budget forcing and the trace format rest on are one token each."""
    assert tokenizer(word, add_special_tokens=False).input_ids == [token_ids()[word]]


def test_answer_cue_is_three_tokens(tokenizer):
    """The answer cue splits as in training."""
    assert tokenizer(ANSWER_CUE).input_ids == encode_tokens([END_THINK, PREAMBLE, BOX])


def test_any_printable_text_survives(tokenizer):
    """All printable ASCII, newlines and tabs round-trip, words of the format inside other words too."""
    rng = random.Random(0)
    alphabet = [*string.printable[:95], "\n", "\t", "Wait", "ok", "\\boxed{", "**Final Answer**", "</think>"]
    for text in ["".join(rng.choices(alphabet, k=200)) for _ in range(50)]:
        ids = tokenizer(text).input_ids
        assert token_ids()["<|unk|>"] not in ids
        assert tokenizer.decode(ids) == text


def test_template_opens_the_thinking(tokenizer):
    """The chat template renders what training used and ends in <think>."""
    program = random_program(random.Random(0), 3, "train")
    messages = [{"role": "user", "content": program.source()}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "".join(prompt_tokens(program))
    assert text.endswith("<think>")


def test_skipping_special_tokens_keeps_thinking_and_answer(tokenizer):
    """Text for the scorer loses chat marks only."""
    program = random_program(random.Random(0), 3, "train")
    trace = write_trace(program, random.Random(0))
    text = tokenizer.decode(encode_tokens(trace.tokens), skip_special_tokens=True)
    assert text == trace.text.removesuffix("<|end|>")


def test_ids_fit_the_config():
    """The configuration's vocabulary and end token are the tokenizer's."""
    config = Recipe().shape.config()
    assert config["vocab_size"] == len(token_ids()) == max(token_ids().values()) + 1
    assert config["eos_token_id"] == token_ids()["<|end|>"]
