"""The report of a hand-made folder: whole, escaped, offline; and of a loop that has only begun."""

import json
import math
import re
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Browser
from labelling import assert_contrast

from minirlhf import UserError, report
from minirlhf.files import read_json, write_json, write_jsonl
from minirlhf.report import figures, probes
from minirlhf.report.summary import collect

EMPTY = '<div class="grid"></div>'  # the style hides its section
VOID = {"meta", "br", "hr", "img", "input", "link"}
KINDS = ("story", "sum", "refuse")
SECTIONS = 8
CONVERSATION = [
    {"role": "user", "content": "I am Ada."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Who am I?"},
]


class Page(HTMLParser):
    """What a browser would see. Tags must match."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words, self.references, self.attributes = [], [], [], [], set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "action", "srcset")]
        self.attributes |= {name for name, _ in attrs}
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
        "reward_percentiles": [gain + i / 100 for i in range(101)],
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


def make_folder(
    out: Path, answer: str = "12.", accuracy: float = 0.76, ppo_steps: int = 40, rounds: int = 2
):
    """What a loop leaves behind."""
    seconds = {"sft": 150.2, "round1/rm": 130, "round1/ppo": 90, "evaluation": 125.8}
    stages = {}
    for name, value in seconds.items():
        stages[name] = {"command": "python x.py", "seconds": value, "finished": True}
        stages[name] |= report.provenance() | {"date": f"2030-01-0{len(stages)} 10:00"}
    (out / "sft").mkdir(parents=True)
    settings = {"rounds": rounds, "quick": False}
    write_json(out / "loop.json", {"settings": settings, "stages": stages})
    rows = [{"step": i, "loss": 1 + 5 * math.exp(-i / 30) + 0.1 * wave(i)} for i in range(300)]
    rows[49]["validation_loss"], rows[299]["validation_loss"] = 2.1, 1.1
    write_jsonl(out / "sft" / "metrics.jsonl", rows)
    policies = [str(out / "sft")]
    for number in range(1, rounds + 1):
        folder = out / f"round{number}"
        (folder / "rm").mkdir(parents=True)
        (folder / "ppo").mkdir()
        buckets = [{"predicted": p, "accuracy": p, "pairs": 90} for p in (0.55, 0.7, 0.9)]
        run = {
            "validation_accuracy": accuracy + 0.02 * number,
            "validation_interval": 0.03,
            "calibration": buckets,
            "newest_before": accuracy - 0.1,
            "newest_after": accuracy,
        }
        write_json(folder / "rm" / "run.json", run)
        rows, samples = [], []
        for i in range(ppo_steps):
            kl = 5 * (number - 1) + 0.12 * i
            row = {"step": i, "raw_score": 0.02 * i, "kl": kl, "entropy": 1 - 0.003 * i}
            row |= {"length": 25, "explained_variance": math.nan if i == 0 else 0.6}
            rows.append(row)
            text = {"step": i, "prompt": "Of the batch", "response": answer, "score": 0.1}
            tokens = {"tokens": [" <b>", "\n"], "token_kl": [0.5, -1]}
            tokens["token_advantages"] = [2, None]
            samples += [text | tokens, text | {"prompt": "Asked again?", "fixed": True}]
        write_jsonl(folder / "ppo" / "metrics.jsonl", rows)
        write_jsonl(folder / "ppo" / "samples.jsonl", samples)
        policies.append(str(folder / "ppo"))

    gains = [0, *(1.1 + 0.6 * i for i in range(rounds))]
    results = [result_of(name, gain) for name, gain in zip(policies, gains)]
    results.append(result_of("demonstrations", 0.4))
    examples = []
    for prompt in ("What is 5 plus 7?", "\n\nHuman: Old?\n\nAssistant:", "", CONVERSATION, "Last?"):
        answers = {}
        for i, policy in enumerate(policies):
            answers[policy] = {"response": answer if i else "I do not know.", "gold": 0.5 + i}
        examples.append({"prompt": prompt, "answers": answers})
    evaluation = {"results": results, "examples": examples, "judge": "gold"}
    write_json(out / "evaluation.json", evaluation)


def read(out: Path) -> tuple[str, Page, dict]:
    assert report.write(str(out)) == out / "report.html"
    html = (out / "report.html").read_text(encoding="utf-8")
    return html, Page(html), json.loads((out / "report.json").read_text(encoding="utf-8"))


def hidden(html: str) -> int:
    return html.count(EMPTY)


def change_evaluation(out: Path, change) -> None:
    evaluation = read_json(out / "evaluation.json")
    change(evaluation["results"])
    write_json(out / "evaluation.json", evaluation)


def test_the_page_is_one_offline_file_with_every_section(tmp_path):
    make_folder(tmp_path, ppo_steps=900, answer="<script>alert('x')</script><b>& $headline")
    html, page, data = read(tmp_path)
    assert data["headline"] in page.words and all(w in page.words for w in data["warnings"])
    assert page.tags.count("h2") == SECTIONS and page.tags.count("svg") == 15
    assert hidden(html) == 0 and len(html) < 1_000_000
    order = ["2 rounds", "Warnings", "before and after", "really better", "Stage 1", "Stage 2"]
    order += ["Stage 3", "could be wrong", "commands"]
    places = [html.index(words) for words in order]
    assert places == sorted(places)
    assert "http" not in html and "@import" not in html
    assert "url(" not in html.replace("url(#", "")
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert "#010203" not in html and "#040506" not in html  # figures take the page's colours
    assert " <b>" in page.words and html.count("--strength: 1.00") == 2  # of KL, of advantage
    assert any("<script>alert('x')</script><b>& $headline" in words for words in page.words)
    for words in ("What is 5 plus 7?", "Old?", "I am Ada.", "Hello!", "Who am I?"):
        assert words in page.words


def test_numbers_and_headline(tmp_path):
    make_folder(tmp_path)
    data = collect(tmp_path)
    for words in ("2 rounds", "84 % ± 2 %", "10.2 nats", "8 min 16 s"):
        assert words in data["headline"]
    numbers = {name: (value, note) for name, value, note in data["key_numbers"]}
    assert numbers["reward model's accuracy"][0] == "80 % ± 2 %"
    assert "usually 0 to 10" in numbers["KL"][1] and "by gold" in numbers["win rate"][1]
    dates, machine, commit = data["made"][0], data["made"][1], data["made"][2:]
    assert dates == "2030-01-01 10:00 to 2030-01-04 10:00" and "cores" in machine
    assert all(words.startswith("commit ") for words in commit)
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

    change_evaluation(tmp_path, spoil)
    data = collect(tmp_path)
    warnings = "\n".join(data["warnings"])
    for words in ("Reward model, round 1", "47 %", "“story”", "-1.00", "35", "20%"):
        assert words in warnings
    assert "PPO" not in warnings


def test_the_last_policys_probes_are_a_row_each_the_worrying_ones_first_and_as_warnings(tmp_path):
    make_folder(tmp_path)
    html, _, data = read(tmp_path)
    section = html.split("<h2>What could be wrong</h2>")[1].split("<h2>")[0]
    tags = [part.split(">")[1].split("<")[0] for part in section.split('<b class="tag ')[1:]]
    assert tags == sorted(tags, key=["look here", "cannot tell", "healthy"].index)
    assert len(tags) == len(data["policies"][2]["probes"]) and len(set(tags)) == 3
    assert "&lt;b&gt;none&lt;/b&gt;" in section and "nan" not in section
    warned = [words for words in data["warnings"] if "prefers longer answers" in words]
    assert len(warned) == 1 and "round 2" in warned[0]


def test_the_fixed_requests_at_several_moments_of_training(tmp_path):
    make_folder(tmp_path)
    html, page, data = read(tmp_path)
    assert len(data["moments"]) == 2 * 40
    path = tmp_path / "round1" / "ppo" / "samples.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace("Asked again?", "Another request"))  # nothing to compare
    assert len(collect(tmp_path)["moments"]) == 40
    path.write_text(whole)
    assert page.words.count("Asked again?") == 1
    assert page.words.count("Of the batch") == 1  # above its tokens
    heads = html.split("<th>request</th>")[3].split("</tr>")[0]
    assert heads.count("<th>") == 4 and "round 1, iteration 1<" in heads
    assert "round 2, iteration 40<" in heads
    (tmp_path / "evaluation.json").unlink()  # until there is one, training has before and after
    html, page, _ = read(tmp_path)
    assert page.words.count("Asked again?") == 1
    above, below = html.split("Stage 1")
    assert "Asked again?" in above and "Asked again?" not in below


def test_ten_rounds_are_told_apart_and_fit_tables_and_page(tmp_path):
    make_folder(tmp_path, rounds=10, ppo_steps=4)
    html, _, data = read(tmp_path)
    assert "10 rounds" in data["headline"] and len(html) < 2_000_000
    assert len({figures.colour(result["stage"]) for result in data["policies"]}) == 11
    for row in html.split("<tr>")[1:]:
        assert row.count("<th>") + row.count("<td>") <= 6


def test_nothing_that_others_wrote_is_read_as_html(tmp_path):
    attack = "\"'><script>x</script><img src=x onerror=x>&amp;"
    make_folder(tmp_path, answer=attack)
    loop, evaluation = read_json(tmp_path / "loop.json"), read_json(tmp_path / "evaluation.json")
    loop["settings"] = {attack: attack}
    texts = ("command", "date", "machine", "commit")
    loop["stages"][attack] = loop["stages"]["sft"] | dict.fromkeys(texts, attack)
    evaluation["judge"] = attack
    last = evaluation["results"][2]
    for row in last["probes"]:
        row |= dict.fromkeys(("probe", "healthy", "verdict", "says"), attack)
    for field in ("kinds", "parts"):
        last[field][attack] = cell(0.1)
    for example in evaluation["examples"]:
        example["answers"][attack] = example["answers"][last["policy"]]
        example["prompt"] = attack
    last["policy"] = attack
    write_json(tmp_path / "loop.json", loop)
    write_json(tmp_path / "evaluation.json", evaluation)
    _, page, _ = read(tmp_path)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert sum("<script>x</script>" in words for words in page.words) > 20


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


def test_names_of_points_with_one_kl_do_not_overlap():
    places = {}
    row = []
    for name, score in (("SFT", 1.0), ("round 1", 1.02), ("round 2", 1.04)):
        row.append((name, {"mean": 2.0, "interval": 0.1}, {"mean": score, "interval": 0.0}))
    far = [("", {"mean": 2.0, "interval": 0.1}, {"mean": 3.0, "interval": 0.0})]
    svg = figures.points("title", "x", "y", {"gold": row, "reward": far})
    for name, *_ in row:
        x, y = re.search(rf' x="([\d.]+)" y="([\d.]+)"[^>]*>{name}<', svg).groups()
        places[name] = float(x), float(y)
    assert places["round 1"][1] + 8 < places["SFT"][1]
    assert places["round 2"][0] + 8 < places["SFT"][0]


def test_an_evaluation_without_probes_shows_none(tmp_path):
    make_folder(tmp_path)
    change_evaluation(tmp_path, lambda results: [result.pop("probes", 0) for result in results])
    html, _, _ = read(tmp_path)
    assert EMPTY in html.split("<h2>What could be wrong</h2>")[1].split("<h2>")[0]


def test_an_evaluation_by_a_judge_knows_no_gold_and_perhaps_no_kl(tmp_path):
    make_folder(tmp_path)

    def strip(results):
        del results[3]
        for result in results:
            keep = ("policy", "win_rate", "kl", "words", "finished", "distinct_open_ended")
            for name in result.keys() - set(keep):
                del result[name]
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
    assert "1 stage is finished, sft the last of them" in html
    assert hidden(html) == 5 and page.tags.count("svg") == 1
    rm = tmp_path / "round1" / "rm"
    rm.mkdir(parents=True)
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
    _, _, data = read(tmp_path)
    assert "4 stages are finished" in data["headline"]


def test_while_the_loop_runs_the_page_says_so_and_reloads_itself(tmp_path):
    make_folder(tmp_path)
    html, _, _ = read(tmp_path)
    assert "refresh" not in html and "So far" not in html
    go_on = "python run_rlhf.py --out 'a b'"
    html = report.write(tmp_path, running=True, go_on=go_on).read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' in html and "So far, at 20" in html and escape(go_on) in html
    html = report.write(tmp_path, go_on=go_on).read_text(encoding="utf-8")
    assert "refresh" not in html and "was interrupted at 20" in html and escape(go_on) in html
    html, _, _ = read(tmp_path)
    assert "refresh" not in html and "interrupted" not in html


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_nothing_is_cut_off_and_reloading_keeps_the_place(tmp_path):
    make_folder(tmp_path, rounds=10, ppo_steps=4)
    page = report.write(tmp_path, running=True)
    soon = re.sub(r'content="20"', 'content="1"', page.read_text(encoding="utf-8"))
    page.write_text(soon, encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        for width in (390, 800, 1280):
            browser.resize(width, 800)
            browser.open(page.as_uri())
            assert browser.js("document.documentElement.scrollWidth") <= width
        assert_contrast(browser)
        browser.js("window.scrollTo(0, 1500); window.old = true")
        browser.wait(lambda: not browser.js("window.old") and browser.js("window.scrollY") > 0)
        assert browser.js("window.scrollY") == 1500


def test_python_m_minirlhf_report_helps_and_names_a_missing_folder(tmp_path):
    missing = tmp_path / "missing"

    def report_of(argument):
        command = [sys.executable, "-m", "minirlhf.report", argument]
        return subprocess.run(command, cwd=root, capture_output=True, text=True)

    root = Path(__file__).parents[1]
    done = report_of(missing)
    assert done.returncode == 2 and str(missing) in done.stderr
    done = report_of("--help")
    assert done.returncode == 0 and "--out" in done.stdout


def test_the_loop_ends_with_what_was_gained_a_typical_pair_and_the_next_command(tmp_path):
    make_folder(tmp_path, answer="It is\x1b[31m 12.\n")
    _, _, data = read(tmp_path)
    lines = report.ending(tmp_path)
    sft, ppo = tmp_path / "sft", tmp_path / "round2" / "ppo"
    said = " ".join(lines).replace("\n", " ")
    assert data["headline"] in said and "0.60 -> 2.30" in said
    assert "       SFT   0.50  I do not know." in lines
    assert r"   round 2   2.50  It is\x1b[31m 12." in lines
    assert lines[-2:] == [
        f"next: python sample.py --init {ppo} --chat",
        f"      python label.py --chat --policies {sft},{ppo}",
    ]


def test_a_loop_whose_judge_has_no_opinion_ends_without_an_example(tmp_path):
    make_folder(tmp_path)
    evaluation = read_json(tmp_path / "evaluation.json")
    first, *others = evaluation["examples"]
    for answer in first["answers"].values():
        answer["gold"] = None
    for examples in ([first, *others], [first]):
        write_json(tmp_path / "evaluation.json", {**evaluation, "examples": examples})
        read(tmp_path)
        lines = report.ending(tmp_path)
        assert any(line.startswith("next: python sample.py") for line in lines)
        assert any("   round 2" in line for line in lines) == (len(examples) > 1)
