"""Fixtures that many tests share: a byte-level chat tokenizer and a model of two small layers, made in memory.

No network and no files from elsewhere: what a test sees is in this file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # the tests run side by side; more threads only wait for each other

PAD, BOS, TURN_START, TURN_END = "<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"

CHATML_TEMPLATE = """\
{%- if tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' -%}
<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' and loop.first -%}
{%- else -%}
<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{{ (call.function or call) | tojson }}</tool_call>
{%- endfor -%}
<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
"""ChatML with a leading system message, tool descriptions, tool calls and tool results."""


def build_tiny_tokenizer(*, adds_bos: bool = False) -> Any:
    """A tokenizer with one token per byte (ids 0-255) and four special ones: pad, bos, turn start, turn end = eos.

    `adds_bos` puts a bos token in front of plain text, as Llama's tokenizer does.
    """
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in (PAD, BOS, TURN_START, TURN_END)]
    )
    if adds_bos:
        backend.post_processor = TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """One token per byte, ChatML, eos `<|im_end|>`; 260 tokens. Shared: copy it before changing it."""
    return build_tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a seeded LlamaForCausalLM (hidden 32, 2 layers, float32) and the tiny tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a PostgreSQL server of this session, without a database's name."""
    from postgres import run_postgres

    with run_postgres() as address:
        yield address


@pytest.fixture(scope="session")
def make_postgres_database(postgres_server: str) -> Callable[[], str]:
    """Gives the address of a new, empty database at each call."""
    import secrets

    import psycopg

    def make() -> str:
        name = f"t{secrets.token_hex(6)}"
        with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"{postgres_server}/{name}"

    return make


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store",
        choices=("sqlite", "postgresql"),
        default="sqlite",
        help="What the stores of the gateway's, the loop's and the command line's tests are.",
    )


@pytest.fixture(scope="session")
def find_store_url(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """The address of a folder's store, the same at each call: of a file in it, or of a database of its own."""
    if request.config.getoption("--store") == "sqlite":
        return lambda folder: str(folder / "votes.db")
    make: Callable[[], str] = request.getfixturevalue("make_postgres_database")
    made: dict[Path, str] = {}

    def find(folder: Path) -> str:
        if folder not in made:
            made[folder] = make()
        return made[folder]

    return find


@pytest.fixture
def url(find_store_url: Callable[[Path], str], tmp_path: Path) -> str:
    """The address of an empty store."""
    return find_store_url(tmp_path)
