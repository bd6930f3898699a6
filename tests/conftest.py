"""Small models and tokenizers made on the spot: the tests need no network and no files."""

import os
from pathlib import Path

import pytest
import torch

from minirlhf.data import Prompt
from minirlhf.model import GPT, Config, ScalarGPT
from minirlhf.tokenizer import Tokenizer

# real data, where a checkout has it beside it or the environment says where
SHARED = Path(os.environ.get("MINIRLHF_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
TEXT = (
    "\n\nHuman: What is 2 + 3?\n\nAssistant: It is 5. \n\nHuman: Tell me of a fox.\n\n"
    "Assistant: The fox ran home. The dog slept by the fire, and the cat looked on. Why not? "
    "Because it can't. "
) * 3


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 320)


def tiny(tokenizer: Tokenizer, cls=GPT, seed: int = 0, spread: float = 5.0, n_positions: int = 64):
    """A 2-layer model whose weights are large enough that its distributions are not uniform."""
    torch.manual_seed(seed)
    model = cls(Config(tokenizer.vocab_size, n_positions, 32, 2, 4), tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
        if cls is ScalarGPT:
            model.score.weight.normal_()
    return model


@pytest.fixture
def policy(tokenizer) -> GPT:
    return tiny(tokenizer)


@pytest.fixture
def prompts() -> list[Prompt]:
    """Ragged: 1 to many tokens, raw texts and conversations."""
    return [
        Prompt.of("x", "raw"),
        Prompt.of("What is 2 + 3?"),
        Prompt.of("The fox ran home. The dog", "raw"),
        Prompt.of("hi"),
        Prompt.of("\n\nHuman: Tell me of a fox.\n\nAssistant: The fox ran.\n\nHuman: Why?"),
    ]
