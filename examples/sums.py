"""A reward without a reward model: sums can be checked. GRPO teaches a model to add.

    python examples/sums.py                      # writes out/sums_train.jsonl, out/sums_test.jsonl
    python train_ppo.py --advantage grpo --samples_per_prompt 8 --prompts_per_step 16 \\
        --reward examples/sums.py:right --data out/sums_train.jsonl --out out/sums
    python evaluate.py --policies out/sft,out/sums --data out/sums_test.jsonl \\
        --gold examples/sums.py:right

A record has the prompt and the answer, which the reward function gets by name.

For a pretrained model, sums in its own words, of one digit and of two, and worked examples of two
digits for train_sft.py (docs/real_models.md has the commands):

    python examples/sums.py pretrained    # writes out/one_digit_*, two_digits_*, worked.jsonl
"""

import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # minirlhf

from minirlhf.files import write_jsonl

HELD_OUT = 5  # every fifth question is not trained on


def right(prompts: list[str], responses: list[str], answer: list[int]) -> list[float]:
    """1 where the last number of the response is the answer, else 0."""
    scores = []
    for response, number in zip(responses, answer):
        numbers = re.findall(r"\d+", response)
        is_right = bool(numbers) and int(numbers[-1]) == number
        scores.append(float(is_right))
    return scores


def toy_questions() -> list[dict]:
    """All sums and differences of two digits, in the toy world's words, shuffled."""
    records = []
    for a in range(1, 10):
        for b in range(1, 10):
            records.append({"prompt": f"What is {a} plus {b}?", "answer": a + b})
            if a > b:
                records.append({"prompt": f"What is {a} minus {b}?", "answer": a - b})
    random.Random(0).shuffle(records)
    return records


def sums(low: int, high: int) -> list[dict]:
    """All sums of two numbers from low to high, shuffled."""
    records = []
    for a in range(low, high + 1):
        for b in range(low, high + 1):
            prompt = f"What is {a} + {b}? Answer with the number only."
            records.append({"prompt": prompt, "answer": a + b})
    random.Random(0).shuffle(records)
    return records


def worked(record: dict) -> dict:
    """A demonstration: ones, tens, then the sum."""
    a, b = map(int, re.findall(r"\d+", record["prompt"]))
    ones = f"{a % 10} + {b % 10} = {a % 10 + b % 10}"
    tens = f"{a - a % 10} + {b - b % 10} = {a - a % 10 + b - b % 10}"
    total = f"{a - a % 10 + b - b % 10} + {a % 10 + b % 10} = {a + b}"
    return {"prompt": record["prompt"], "completion": f"{tens}, {ones}, {total}"}


def write_split(name: str, records: list[dict]) -> None:
    held_out = records[::HELD_OUT]
    train = [record for i, record in enumerate(records) if i % HELD_OUT]
    write_jsonl(f"out/{name}_test.jsonl", held_out)
    write_jsonl(f"out/{name}_train.jsonl", train)


def main(wording: str) -> None:
    Path("out").mkdir(exist_ok=True)
    if wording == "toy":
        questions = toy_questions()
        write_jsonl("out/sums_test.jsonl", questions[:24])
        write_jsonl("out/sums_train.jsonl", questions[24:])
        return
    write_split("one_digit", sums(1, 9))
    two_digits = sums(10, 99)[:600]
    write_split("two_digits", two_digits)
    learned = [record for i, record in enumerate(two_digits) if i % HELD_OUT]
    write_jsonl("out/worked.jsonl", map(worked, learned[:300]))


if __name__ == "__main__":
    main("toy" if len(sys.argv) == 1 else "pretrained")
