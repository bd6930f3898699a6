"""Small models and tokenizers made on the spot: the tests need no network and no files."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing from a second thread

import pytest
import torch

from minirlhf.data import Prompt
from minirlhf.model import GPT, Config, ScalarGPT
from minirlhf.tokenizer import Tokenizer

# a shell's background jobs ignore Ctrl-C, and so would the scripts that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


# real data, where a checkout has it beside it or the environment says where
SHARED = Path(os.environ.get("MINIRLHF_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
# tests/reliability: damaged inputs to each parser, kills of each script
FUZZ = int(os.environ.get("MINIRLHF_FUZZ", "300"))
KILLS = int(os.environ.get("MINIRLHF_KILLS", "4"))
TEXT = (
    "\n\nHuman: What is 2 + 3?\n\nAssistant: It is 5. \n\nHuman: Tell me of a fox.\n\n"
    "Assistant: The fox ran home. The dog slept by the fire, and the cat looked on. Why not? "
    "Because it can't. "
) * 3


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 320)


def tiny(tokenizer, cls=GPT, seed: int = 0, spread: float = 5.0, n_positions: int = 64, **fields):
    """A 2-layer model whose weights are large enough that its distributions are not uniform.

    fields: others of its Config.
    """
    torch.manual_seed(seed)
    sizes = {"vocab_size": tokenizer.vocab_size, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = cls(Config(n_positions=n_positions, **sizes | fields), tokenizer)
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


SMALL = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 32,
    "vocab_size": 400,
    "n_positions": 192,
    "count": 200,
    "batch_size": 8,
}


@pytest.fixture(scope="session")
def stages(tmp_path_factory) -> Path:
    """A small SFT model of the toy world, candidates, rankings and a reward model.

    The scripts themselves make them, once for all tests: use them, do not write to them.
    """
    import label
    import sample
    import train_rm
    import train_sft

    folder = tmp_path_factory.mktemp("stages")
    sft, candidates, rankings = (
        folder / "sft",
        folder / "candidates.jsonl",
        folder / "rankings.jsonl",
    )
    train_sft.main(train_sft.Settings(out=str(sft), steps=60, **SMALL))
    sample.main(
        sample.Settings(
            init=str(sft),
            data="toyworld",
            count=40,
            samples=3,
            max_tokens=24,
            candidates_out=str(candidates),
        )
    )
    label.main(label.Settings(candidates=str(candidates), out=str(rankings), annotator="toyworld"))
    train_rm.main(
        train_rm.Settings(
            init=str(sft),
            data=str(rankings),
            out=str(folder / "rm"),
            max_tokens=24,
            batch_size=4,
        )
    )
    return folder
