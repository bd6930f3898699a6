"""A reward that needs no reward model: sums can be checked. GRPO makes a model that adds badly add well.

    python examples/sums.py                      # writes out/sums_train.jsonl and out/sums_test.jsonl, 93 and 24 questions
    python train_ppo.py --advantage grpo --samples_per_prompt 8 --prompts_per_step 16 --init out/sft --out out/sums \\
        --reward examples/sums.py:right --data out/sums_train.jsonl
    python evaluate.py --policies out/sft,out/sums --reward examples/sums.py:right --judge reward --data out/sums_test.jsonl
"""

import json
import random
import re
from pathlib import Path


def right(prompts: list[str], responses: list[str]) -> list[float]:
    """1 where the last number of the response is the result of the sum in the prompt, else 0."""
    scores = []
    for prompt, response in zip(prompts, responses):
        a, word, b = re.findall(r"(\d+) (plus|minus) (\d+)", prompt)[-1]
        result = int(a) + int(b) if word == "plus" else int(a) - int(b)
        numbers = re.findall(r"\d+", response)
        scores.append(float(bool(numbers) and int(numbers[-1]) == result))
    return scores


def questions() -> list[str]:
    """All sums and differences of two digits, shuffled."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    found = [f"What is {a} plus {b}?" for a, b in pairs] + [
        f"What is {a} minus {b}?" for a, b in pairs if a > b
    ]
    random.Random(0).shuffle(found)
    return found


if __name__ == "__main__":
    Path("out").mkdir(exist_ok=True)
    for name, part in (("train", questions()[24:]), ("test", questions()[:24])):
        Path(f"out/sums_{name}.jsonl").write_text(
            "".join(json.dumps({"prompt": q}) + "\n" for q in part), encoding="utf-8"
        )
