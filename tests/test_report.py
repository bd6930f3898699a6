"""The report of a hand-made folder: whole, escaped, offline; and of a folder whose loop has only begun."""
import json
import math
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from minirlhf import UserError, probes, report

VOID = {"meta", "br", "hr", "img", "input", "link"}
KINDS = ("story", "sum", "refuse")


class Page(HTMLParser):
    """Collects what a browser would see; complains about tags that do not match."""

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


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")


def result_of(policy: str, gain: float, kinds=KINDS) -> dict:
    def cell(x, half=0.05):
        return {"mean": x, "interval": half}
    result = {"policy": policy, "gold": cell(0.6 + gain), "words": cell(14 + 3 * gain, 0.4), "responses": 1600,
              "distinct_open_ended": 0.9 - 0.2 * gain,
              "parts": {p: cell(0.2 + gain / 3) for p in ("helpful", "honest", "tone")},
              "kinds": {k: cell(0.5 + gain * (1 + wave(i + 3)), 0.02 + 0.1 * (i % 3)) | {"win_rate": 0.5 + gain / 5}
                        for i, k in enumerate(kinds)}}
    if policy != "demonstrations":
        result |= {"win_rate": cell(0.5 + 0.2 * gain, 0.02), "kl": cell(6 * gain, 0.3), "finished": 0.97,
                   "reward": cell(gain), "reward_accuracy": cell(0.8 - 0.04 * gain, 0.02) | {"pairs": 900},
                   "best_of_n": [{"n": n, "kl_bound": math.log(n) - 1 + 1 / n, "gold": cell(0.6 + n / 10)} for n in (1, 2, 4)],
                   "probes": probes_of(gain)}
    return result


def probes_of(gain: float) -> list[dict]:
    """Of a reward that is the length of the answer, where gold is something else, and a policy that kept to what it knew."""
    generator = torch.Generator().manual_seed(round(10 * gain))
    gold, words = (torch.randn(30, 4, generator=generator) for _ in range(2))
    rows = [*probes.of_length(words, words, gold), probes.of_calibration(words, gold)]
    rows += [probes.of_distance(words, gold, gain * words.abs())] if gain else []
    flips = {"mean": 0.0, "interval": 0.05, "prompts": 60}
    return [*rows, probes.of_training({"mean": math.nan, "interval": 0.1}, words, torch.ones(30), words.std()),
            probes.verdict("right answers that a wrong belief flips", flips, "<b>none</b>")]


def make_folder(out: Path, kinds=KINDS, answer: str = "12.", rm_accuracy: float = 0.76, ppo_steps: int = 40) -> None:
    """What a loop of two rounds leaves behind."""
    commands = {"sft": 150.2, "round1/candidates": 20, "round1/rankings": 1.2, "round1/rm": 30, "round1/ppo": 90.5,
                "round2/candidates": 20, "round2/rankings": 1, "round2/rm": 61, "round2/ppo": 92, "evaluation": 30}
    stages = {k: {"command": f"python x.py --out out/{k}", "seconds": s, "finished": True} for k, s in commands.items()}
    write_json(out / "loop.json", {"settings": {"rounds": 2, "kl_coef": 0.05, "quick": False}, "stages": stages})
    write_json(out / "sft" / "metrics.jsonl", [
        {"step": i, "loss": 1 + 5 * math.exp(-i / 30) + 0.1 * wave(i), "lr": 1e-3}
        | ({"validation_loss": 1.1 + 5 * math.exp(-i / 30)} if i % 50 == 49 else {}) for i in range(300)])
    for r in (1, 2):
        write_json(out / f"round{r}" / "rm" / "metrics.jsonl", [
            {"step": i, "loss": 0.69 - 0.003 * i + 0.03 * wave(i), "accuracy": 0.5 + 0.004 * i} for i in range(56)])
        buckets = [{"difference": x, "predicted": 1 / (1 + math.exp(-x)), "accuracy": 0.5 + x / (6 + r), "pairs": 90}
                   for x in (0.2, 1, 2, 3)]
        write_json(out / f"round{r}" / "rm" / "run.json", {
            "validation_accuracy": rm_accuracy + 0.02 * r, "validation_interval": 0.03, "validation_pairs": 600,
            "calibration": buckets})
        write_json(out / f"round{r}" / "ppo" / "metrics.jsonl", [
            {"step": i, "score": 0.5 * (r - 1) + 0.02 * i + 0.1 * wave(i), "kl": 5 * (r - 1) + 0.12 * i,
             "entropy": 1 - 0.2 * r - 0.003 * i, "clip_fraction": 0.1, "approx_kl": 0.01, "finished": 0.97,
             "explained_variance": math.nan if i == 0 else 0.6, "length": 25 + r, "length_correlation": 0.1,
             "distinct": 0.95, "first_ratio_off": 1e-6}
            for i in range(ppo_steps)])
    folders = [str(out / "sft"), str(out / "round1" / "ppo"), str(out / "round2" / "ppo")]
    results = [result_of(f, g, kinds) for f, g in zip([*folders, "demonstrations"], (0, 1.1, 1.7, 0.4))]
    prompts = ["\n\nHuman: What is 5 plus 7?\n\nAssistant:", "Once upon a time",
               "\n\nHuman: I am Ada.\n\nAssistant: Hello!\n\nHuman: Who am I?\n\nAssistant:"]
    examples = [{"prompt": p, "answers": {f: {"response": answer if i else "I do not know that.", "gold": 0.5 + i}
                                          for i, f in enumerate(folders)}} for p in prompts]
    write_json(out / "evaluation.json", {"baseline": folders[0], "prompts": 400, "samples": 4, "results": results,
                                         "examples": examples})


def read(out: Path) -> tuple[str, Page, dict]:
    assert report.write(str(out)) == out / "report.html"
    html = (out / "report.html").read_text(encoding="utf-8")
    return html, Page(html), json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_the_page_is_one_offline_file_with_every_section(tmp_path):
    make_folder(tmp_path, ppo_steps=900, answer="<script>alert('x')</script><b>& $headline")
    html, page, _ = read(tmp_path)
    assert page.tags.count("h2") == 9 and page.tags.count("svg") >= 17 and "Not there yet" not in html
    assert "http" not in html and "@import" not in html and "url(" not in html.replace("url(#", "")
    assert all(x.startswith(("#", "data:")) for x in page.references)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert len(html) < 1_000_000
    assert "#010203" not in html and "#040506" not in html       # figures take the page's colours, light or dark
    # what models say is text
    assert "<script" not in html and any("<script>alert('x')</script><b>& $headline" in words for words in page.words)


def test_numbers_and_headline(tmp_path):
    make_folder(tmp_path)
    html, _, data = read(tmp_path)
    assert data["headline"] == ("After 2 rounds the policy's answers beat the SFT model's in 84 % ± 2 % of comparisons "
                                "on prompts it never saw, at 10.2 nats of KL; it took 8 min 16 s.")
    assert "in 84 % ± 2 % of comparisons" in html and data["key_numbers"]["reward model's accuracy"] == "80 % ± 2 %"
    assert [r["stage"] for r in data["policies"]] == ["SFT", "round 1", "round 2"] and data["demonstrations"]
    assert data["ppo"]["round 2"]["metrics"]["kl"][-1] == pytest.approx(9.68)
    assert data["ppo"]["round 1"]["metrics"]["explained_variance"][0] is None     # NaN is no JSON
    assert data["ppo"]["round 2"]["at_the_end"]["kl"] == pytest.approx(5 + 0.12 * 37.5)
    assert len(data["sft"]["loss"]) == 300 and data["stages"]["sft"]["seconds"] == 150.2


def test_warnings_say_what_is_unhealthy(tmp_path):
    make_folder(tmp_path, rm_accuracy=0.45)
    path = tmp_path / "evaluation.json"
    evaluation = json.loads(path.read_text())
    last = evaluation["results"][2]
    last["kl"]["mean"], last["distinct_open_ended"], last["kinds"]["story"]["mean"] = 35.0, 0.2, -1.0
    path.write_text(json.dumps(evaluation))
    html, _, data = read(tmp_path)
    said = "\n".join(data["warnings"])
    assert "Reward model, round 1: accuracy 47 % ± 3 %" in said
    assert "Evaluation, round 2: gold for “story” fell from 0.50 to -1.00" in said
    assert "35 nats of KL" in said and "20% of answers to open requests are distinct, 90% before" in said
    assert all(escape(w).split("“")[0] in html for w in data["warnings"])
    assert "PPO" not in said


def test_probes_are_a_row_each_the_worrying_ones_first_and_as_warnings(tmp_path):
    make_folder(tmp_path)
    html, _, data = read(tmp_path)
    section = html.split("<h2>What could be wrong</h2>")[1].split("<h2>")[0]
    shown, *others = section.split("<details>")
    assert len(others) == 2 and "by the answers of SFT" in others[0] and "by the answers of round 1" in others[1]
    tags = [cell.split("<")[0] for cell in shown.split('<b class="tag ')[1:]]
    assert [t.split(">")[1] for t in tags] == sorted((p["verdict"] for p in data["policies"][2]["probes"]), key=[
        "look here", "cannot tell", "healthy"].index) and {t.split(">")[1] for t in tags} == {"look here", "cannot tell", "healthy"}
    assert "the reward prefers longer answers: r = 1.00 ± " in shown and "&lt;b&gt;none&lt;/b&gt;" in shown and "nan" not in shown
    for title in ("Score against KL", "Accuracy by length", "Accuracy by distance", "Calibration against gold"):
        assert f">{title}" in shown or f'"{title}' in shown
    warned = [w for w in data["warnings"] if "the reward prefers longer answers" in w]
    assert len(warned) == 1 and warned[0].startswith("Evaluation, round 2: ")                        # of the last round alone


def test_several_runs_are_one_frontier_and_keep_apart(tmp_path):
    folders = ["out/sft", "a/kl1/ppo", "b/kl1/ppo", "a/kl9/ppo"]
    results = [result_of(f, g) for f, g in zip(folders, (0, 0.7, 1.1, 0.2))]
    write_json(tmp_path / "evaluation.json", {"results": results})
    html, _, data = read(tmp_path)
    assert [r["stage"] for r in data["policies"]] == ["SFT", "a/kl1/ppo", "b/kl1/ppo", "a/kl9/ppo"]
    frontier = html.split('aria-label="Score against KL')[1].split("</svg>")[0]
    seen = [frontier.index(f">{r['stage']}<") for r in sorted(data["policies"], key=lambda r: r["kl"]["mean"])]
    assert seen == sorted(seen) and ">gold<" in frontier and ">reward<" in frontier


def test_an_evaluation_without_probes_shows_none(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "evaluation.json"
    evaluation = json.loads(path.read_text())
    for result in evaluation["results"]:
        result.pop("probes", None)
    path.write_text(json.dumps(evaluation))
    html, _, _ = read(tmp_path)
    assert "Not there yet" in html.split("<h2>What could be wrong</h2>")[1].split("<h2>")[0]


def test_a_folder_whose_loop_has_only_begun(tmp_path):
    read(tmp_path)                                                                      # nothing at all
    write_json(tmp_path / "loop.json", {"stages": {"sft": {"command": "python train_sft.py", "finished": True}}})
    write_json(tmp_path / "sft" / "metrics.jsonl", [{"step": 0, "loss": 6.9}])
    html, page, data = read(tmp_path)
    assert "Finished so far: sft." in html and html.count("Not there yet") == 6 and page.tags.count("svg") == 2
    write_json(tmp_path / "round1" / "rm" / "metrics.jsonl", [{"step": 0, "loss": 0.7, "accuracy": 0.5}])
    write_json(tmp_path / "round1" / "rm" / "run.json", {"finished": False})            # killed before its validation
    _, _, data = read(tmp_path)
    assert data["reward_models"]["round 1"]["accuracy"]["mean"] is None
    with pytest.raises(UserError, match="no folder"):
        report.write(str(tmp_path / "elsewhere"))


def test_an_evaluation_of_sft_alone(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["results"] = evaluation["results"][:1]
    evaluation["results"][0]["kinds"]["sum"]["interval"] = math.nan                     # a kind with a single prompt
    path.write_text(json.dumps(evaluation))
    html, _, data = read(tmp_path)
    assert "under way" in data["headline"] and "demonstrations</th>" not in html
