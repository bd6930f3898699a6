"""A reward without a reward model: sums can be checked. GRPO teaches a model to add.

    python examples/sums.py                      # writes out/sums_train.jsonl, out/sums_test.jsonl
    python train_ppo.py --advantage grpo --samples_per_prompt 8 --prompts_per_step 16 \\
        --reward examples/sums.py:right --data out/sums_train.jsonl --out out/sums
    python evaluate.py --policies out/sft,out/sums --data out/sums_test.jsonl \\
        --gold examples/sums.py:right

A record has the prompt and the answer, which the reward function gets by name.
"""

import json
import random
import re
from pathlib import Path


def right(prompts: list[str], responses: list[str], answer: list[int]) -> list[float]:
    """1 where the last number of the response is the answer, else 0."""
    scores = []
    for response, number in zip(responses, answer):
        numbers = re.findall(r"\d+", response)
        is_right = bool(numbers) and int(numbers[-1]) == number
        scores.append(float(is_right))
    return scores


def questions() -> list[dict]:
    """All sums and differences of two digits, shuffled."""
    records = []
    for a in range(1, 10):
        for b in range(1, 10):
            records.append({"prompt": f"What is {a} plus {b}?", "answer": a + b})
            if a > b:
                records.append({"prompt": f"What is {a} minus {b}?", "answer": a - b})
    random.Random(0).shuffle(records)
    return records


def write(path: str, records: list[dict]) -> None:
    lines = [json.dumps(record) + "\n" for record in records]
    Path(path).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    Path("out").mkdir(exist_ok=True)
    write("out/sums_test.jsonl", questions()[:24])
    write("out/sums_train.jsonl", questions()[24:])
