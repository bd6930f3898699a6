"""The report of a hand-made folder: whole, escaped, offline; and of a loop that has only begun."""

import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from minirlhf import UserError, report
from minirlhf.files import read_json, write_json, write_jsonl
from minirlhf.report import probes
from minirlhf.report.summary import collect

VOID = {"meta", "br", "hr", "img", "input", "link"}
KINDS = ("story", "sum", "refuse")
SECTIONS = 9
CONVERSATION = [
    {"role": "user", "content": "I am Ada."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Who am I?"},
]


class Page(HTMLParser):
    """What a browser would see. Tags must match."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words, self.references = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "action", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


def wave(i: int) -> float:
    return math.sin(12.9898 * i * i)


def cell(mean: float, interval: float = 0.05) -> dict:
    return {"mean": mean, "interval": interval}


def result_of(policy: str, gain: float) -> dict:
    kinds = {}
    for i, kind in enumerate(KINDS):
        kinds[kind] = cell(0.5 + gain * (1 + wave(i + 3)), 0.02 + 0.1 * (i % 3))
    result = {
        "policy": policy,
        "gold": cell(0.6 + gain),
        "words": cell(14 + 3 * gain, 0.4),
        "distinct_open_ended": 0.9 - 0.2 * gain,
        "parts": {part: cell(0.2 + gain / 3) for part in ("helpful", "honest", "tone")},
        "kinds": kinds,
    }
    if policy == "demonstrations":
        return result
    best = [{"n": n, "kl_bound": math.log(n), "gold": cell(0.6 + n / 10)} for n in (1, 2, 4)]
    return result | {
        "win_rate": cell(0.5 + 0.2 * gain, 0.02),
        "kl": cell(6 * gain, 0.3),
        "exact_kl": cell(6 * gain, 0.1),
        "finished": 0.97,
        "reward": cell(gain),
        "reward_accuracy": cell(0.8 - 0.04 * gain, 0.02),
        "best_of_n": best,
        "probes": probes_of(gain),
    }


def probes_of(gain: float) -> list[dict]:
    """Of a reward that is the length, where gold is something else, and of a policy that knows."""
    generator = torch.Generator().manual_seed(round(10 * gain))
    gold, words = (torch.randn(30, 4, generator=generator) for _ in range(2))
    rows = [probes.of_correlation(words, words, gold), probes.of_counting(words, words, gold)]
    rows.append(probes.of_calibration(words, gold))
    if gain:
        rows.append(probes.of_distance(words, gold, gain * words.abs()))
    flips = {"mean": 0.0, "interval": 0.05, "prompts": 60}
    rows.append(probes.verdict("right answers that a wrong belief flips", flips, "<b>none</b>"))
    unknown = {"mean": math.nan, "interval": math.nan, "prompts": 0}
    rows.append(probes.verdict("garbled text liked better than whole, less gold's", unknown, ""))
    return rows


def make_folder(out: Path, answer: str = "12.", accuracy: float = 0.76, ppo_steps: int = 40):
    """What a loop of two rounds leaves behind."""
    seconds = {"sft": 150.2, "round1/rm": 130, "round1/ppo": 90, "evaluation": 125.8}
    stages = {}
    for name, value in seconds.items():
        stages[name] = {"command": "python x.py", "seconds": value, "finished": True}
    for folder in ("sft", "round1/rm", "round1/ppo", "round2/rm", "round2/ppo"):
        (out / folder).mkdir(parents=True)
    write_json(out / "loop.json", {"settings": {"rounds": 2, "quick": False}, "stages": stages})
    rows = [{"step": i, "loss": 1 + 5 * math.exp(-i / 30) + 0.1 * wave(i)} for i in range(300)]
    rows[49]["validation_loss"], rows[299]["validation_loss"] = 2.1, 1.1
    write_jsonl(out / "sft" / "metrics.jsonl", rows)
    for number in (1, 2):
        folder = out / f"round{number}"
        rows = [{"step": i, "loss": 0.69 - 0.003 * i, "accuracy": 0.5} for i in range(56)]
        write_jsonl(folder / "rm" / "metrics.jsonl", rows)
        buckets = [{"predicted": p, "accuracy": p, "pairs": 90} for p in (0.55, 0.7, 0.9)]
        run = {
            "validation_accuracy": accuracy + 0.02 * number,
            "validation_interval": 0.03,
            "calibration": buckets,
        }
        write_json(folder / "rm" / "run.json", run)
        rows = []
        for i in range(ppo_steps):
            kl = 5 * (number - 1) + 0.12 * i
            row = {"step": i, "raw_score": 0.02 * i, "kl": kl, "entropy": 1 - 0.003 * i, "length": 25}
            rows.append(row | {"explained_variance": math.nan if i == 0 else 0.6})
        write_jsonl(folder / "ppo" / "metrics.jsonl", rows)

    folders = [str(out / "sft"), str(out / "round1" / "ppo"), str(out / "round2" / "ppo")]
    names = zip([*folders, "demonstrations"], (0, 1.1, 1.7, 0.4))
    examples = []
    for prompt in ("What is 5 plus 7?", "\n\nHuman: Old?\n\nAssistant:", "", CONVERSATION):
        answers = {}
        for i, folder in enumerate(folders):
            answers[folder] = {"response": answer if i else "I do not know.", "gold": 0.5 + i}
        examples.append({"prompt": prompt, "answers": answers})
    results = [result_of(name, gain) for name, gain in names]
    write_json(out / "evaluation.json", {"results": results, "examples": examples})


def read(out: Path) -> tuple[str, Page, dict]:
    assert report.write(str(out)) == out / "report.html"
    html = (out / "report.html").read_text(encoding="utf-8")
    return html, Page(html), json.loads((out / "report.json").read_text(encoding="utf-8"))


def change_evaluation(out: Path, change) -> None:
    evaluation = read_json(out / "evaluation.json")
    change(evaluation["results"])
    write_json(out / "evaluation.json", evaluation)


def test_the_page_is_one_offline_file_with_every_section(tmp_path):
    make_folder(tmp_path, ppo_steps=900, answer="<script>alert('x')</script><b>& $headline")
    html, page, data = read(tmp_path)
    assert data["headline"] in page.words and all(w in page.words for w in data["warnings"])
    assert page.tags.count("h2") == SECTIONS and page.tags.count("svg") >= 16
    assert "Not there yet" not in html and len(html) < 1_000_000
    assert "http" not in html and "@import" not in html
    assert "url(" not in html.replace("url(#", "")
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert "#010203" not in html and "#040506" not in html  # figures take the page's colours
    assert any("<script>alert('x')</script><b>& $headline" in words for words in page.words)
    for words in ("What is 5 plus 7?", "Old?", "I am Ada.", "Hello!", "Who am I?"):
        assert words in page.words


def test_numbers_and_headline(tmp_path):
    make_folder(tmp_path)
    data = collect(tmp_path)
    for words in ("2 rounds", "84 % ± 2 %", "10.2 nats", "8 min 16 s"):
        assert words in data["headline"]
    assert data["key_numbers"]["reward model's accuracy"] == "80 % ± 2 %"
    assert [result["stage"] for result in data["policies"]] == ["SFT", "round 1", "round 2"]
    assert data["demonstrations"]
    assert data["ppo"]["round 1"]["metrics"]["explained_variance"][0] is None  # NaN is no JSON
    assert data["ppo"]["round 2"]["at_the_end"]["kl"] == pytest.approx(5 + 0.12 * 37.5)
    assert len(data["sft"]["loss"]) == 300 and data["stages"]["sft"]["seconds"] == 150.2


def test_warnings_say_what_is_unhealthy(tmp_path):
    make_folder(tmp_path, accuracy=0.45)

    def spoil(results):
        results[2]["kl"]["mean"] = 35.0
        results[2]["distinct_open_ended"] = 0.2
        results[2]["kinds"]["story"]["mean"] = -1.0
        results[2]["gold"]["mean"] = 0.1

    change_evaluation(tmp_path, spoil)
    data = collect(tmp_path)
    warnings = "\n".join(data["warnings"])
    for words in ("Reward model, round 1", "47 %", "“story”", "-1.00", "35", "20%", "gold fell"):
        assert words in warnings
    assert "PPO" not in warnings


def test_probes_are_a_row_each_the_worrying_ones_first_and_as_warnings(tmp_path):
    make_folder(tmp_path)
    html, _, data = read(tmp_path)
    section = html.split("<h2>What could be wrong</h2>")[1].split("<h2>")[0]
    shown, *others = section.split("<details>")
    assert len(others) == 2 and "SFT" in others[0] and "round 1" in others[1]
    tags = [part.split(">")[1].split("<")[0] for part in shown.split('<b class="tag ')[1:]]
    assert tags == sorted(tags, key=["look here", "cannot tell", "healthy"].index)
    assert len(tags) == len(data["policies"][2]["probes"]) and len(set(tags)) == 3
    assert "&lt;b&gt;none&lt;/b&gt;" in shown and "nan" not in shown
    for title in ("Score against KL", "Accuracy by length", "Accuracy by distance", "Calibration"):
        assert f'aria-label="{title}' in shown
    warned = [words for words in data["warnings"] if "prefers longer answers" in words]
    assert len(warned) == 1 and "round 2" in warned[0]  # of the last round alone


def test_several_runs_are_one_frontier_and_keep_apart(tmp_path):
    folders = ["out/sft", "a/kl1/ppo", "b/kl1/ppo", "a/kl9/ppo"]
    results = [result_of(folder, gain) for folder, gain in zip(folders, (0, 0.7, 1.1, 0.2))]
    write_json(tmp_path / "evaluation.json", {"results": results})
    html, _, data = read(tmp_path)
    assert [result["stage"] for result in data["policies"]] == ["SFT", *folders[1:]]
    frontier = html.split('aria-label="Score against KL')[1].split("</svg>")[0]
    in_order = ["SFT", "a/kl9/ppo", "a/kl1/ppo", "b/kl1/ppo"]  # by KL
    places = [frontier.index(f">{stage}<") for stage in in_order]
    assert places == sorted(places) and ">gold<" in frontier and ">reward<" in frontier


def test_an_evaluation_without_probes_shows_none(tmp_path):
    make_folder(tmp_path)
    change_evaluation(tmp_path, lambda results: [result.pop("probes", 0) for result in results])
    html, _, _ = read(tmp_path)
    assert "Not there yet" in html.split("<h2>What could be wrong</h2>")[1].split("<h2>")[0]


def test_an_evaluation_by_a_judge_knows_no_gold_and_perhaps_no_kl(tmp_path):
    make_folder(tmp_path)

    def strip(results):
        del results[3]
        for result in results:
            for name in ("gold", "kinds", "parts", "reward", "reward_accuracy", "best_of_n"):
                del result[name]
            del result["probes"]
        results[2]["kl"] = {"mean": math.nan, "interval": math.nan}

    change_evaluation(tmp_path, strip)
    _, _, data = read(tmp_path)
    assert "– nats" in data["headline"]


def test_a_folder_whose_loop_has_only_begun(tmp_path):
    read(tmp_path)  # nothing at all
    stages = {"sft": {"command": "python train_sft.py", "finished": True}}
    write_json(tmp_path / "loop.json", {"stages": stages})
    (tmp_path / "sft").mkdir()
    write_jsonl(tmp_path / "sft" / "metrics.jsonl", [{"step": 0, "loss": 6.9}])
    html, page, _ = read(tmp_path)
    assert "Finished so far: sft." in html
    assert html.count("Not there yet") == 6 and page.tags.count("svg") == 1
    rm = tmp_path / "round1" / "rm"
    rm.mkdir(parents=True)
    write_jsonl(rm / "metrics.jsonl", [{"step": 0, "loss": 0.7, "accuracy": 0.5}])
    write_json(rm / "run.json", {"finished": False})  # killed before its validation
    _, _, data = read(tmp_path)
    assert data["reward_models"]["round 1"]["accuracy"]["mean"] is None
    with pytest.raises(UserError, match="elsewhere"):
        report.write(str(tmp_path / "elsewhere"))


def test_an_evaluation_of_sft_alone(tmp_path):
    make_folder(tmp_path)

    def keep_one(results):
        del results[1:]
        results[0]["kinds"]["sum"]["interval"] = math.nan  # a kind with a single prompt

    change_evaluation(tmp_path, keep_one)
    html, _, data = read(tmp_path)
    assert "under way" in data["headline"] and "demonstrations</th>" not in html


def test_python_m_minirlhf_report_names_a_missing_folder(tmp_path):
    missing = tmp_path / "missing"
    command = [sys.executable, "-m", "minirlhf.report", missing]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 2 and str(missing) in done.stderr
