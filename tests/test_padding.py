"""A reward model's scores in transformers do not depend on the batch."""

import pytest
import tokenizer_folders
import torch
from conftest import tiny

from minirlhf.data import Prompt, messages
from minirlhf.model import Config, ScalarGPT
from minirlhf.rewards import TrainedReward
from minirlhf.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

REQUESTS = ["Hi", "What is 2 + 3? The fox can't say.", "Why?"]
ANSWERS = ["The fox ran 12 miles.", "", "5! 東京 café"]


BODIES = [{}]  # fields of Config
if hasattr(Config, "model_type"):
    BODIES.append({"model_type": "llama", "n_inner": 40})


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", ["ours", *tokenizer_folders.KINDS])
def test_transformers_reads_the_score_where_we_do(tmp_path, kind, body):
    if kind == "ours":
        tokenizer = Tokenizer.train([tokenizer_folders.TEXT], 320)
    else:
        tokenizer = Tokenizer.from_pretrained(tokenizer_folders.write(tmp_path, kind))
    model = tiny(tokenizer, ScalarGPT, n_positions=160, **body)
    model.save_pretrained(tmp_path / "rm")
    prompts = [Prompt.of(request) for request in REQUESTS]
    expected = TrainedReward(model)(prompts, ANSWERS)
    assert max(expected) - min(expected) > 0.1

    rm = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "rm")
    conversations = []
    for prompt, answer in zip(prompts, ANSWERS):
        conversations.append(messages((*prompt.turns, ("assistant", answer))))
    batch = theirs.apply_chat_template(
        conversations, return_dict=True, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        scores = rm(**batch).logits[:, 0]
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)
