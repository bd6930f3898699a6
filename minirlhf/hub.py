"""Published models and data, fetched once into a cache folder: GPT-2's four sizes and data sets by name.

A file appears under its name only when its size, and its SHA-256 where the server tells it, are right; an interrupted
download goes on where it stopped. MINIRLHF_CACHE is the cache (default ~/.cache/minirlhf), HF_ENDPOINT a mirror of
huggingface.co, HTTPS_PROXY and its kin are respected.
"""
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from minirlhf import UserError

MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")            # 124 M, 355 M, 774 M and 1.56 B parameters
MODEL_FILES = ("config.json", "vocab.json", "merges.txt", "model.safetensors")
ATTEMPTS = 8             # connections to one file; the pauses between them add up to 21 seconds
_GITHUB = "https://raw.githubusercontent.com"
_HH, _TLDR = "datasets/Anthropic/hh-rlhf/resolve/main", "https://openaipublic.blob.core.windows.net/summarize-from-feedback"
DATA = {        # name -> (URLs, or paths at HF_ENDPOINT; {} is train or test), the ending under which they are kept
    **{f"hh-{part}": ([f"{_HH}/{part}/{{}}.jsonl.gz"], ".jsonl.gz")               # Bai 2022a; pairs of whole dialogues
       for part in ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base")},
    "tldr": ([f"{_TLDR}/dataset/comparisons/batch{i}.json" for i in (*range(3, 21), 22)], ".jsonl"),       # Stiennon 2020
    "imdb": (["datasets/stanfordnlp/imdb/resolve/main/plain_text/{}-00000-of-00001.parquet"], ".parquet"),   # Maas 2011
    "alpaca": ([f"{_GITHUB}/tatsu-lab/stanford_alpaca/main/alpaca_data.json"], ".json"),
    "shakespeare": ([f"{_GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"], ".txt")}


def cache() -> Path:
    return Path(os.environ.get("MINIRLHF_CACHE") or Path.home() / ".cache" / "minirlhf")


def model_folder(name: str | Path) -> Path:
    """A folder is itself; one of MODELS, unless a folder of that name is here, its folder in the cache, fetched if need be."""
    if str(name) not in MODELS or Path(name).exists():
        return Path(name)
    folder = cache() / name
    for file in MODEL_FILES:
        fetch(f"openai-community/{name}/resolve/main/{file}", folder / file, f"put its {', '.join(MODEL_FILES)} into {folder}")
    return folder


def data_files(name: str, split: str) -> list[str]:
    """One of DATA -> its files in the cache, fetched if need be. Sets that are published whole have no split of their own."""
    urls, ending = DATA[name]
    files = [cache() / name / ((split if "{}" in u else Path(u).stem) + ending) for u in urls]
    return [str(fetch(u.format(split), file, f"put it at {file}")) for u, file in zip(urls, files)]


def fetch(url: str, path: Path, remedy: str) -> Path:
    """The file at url, under path, which is returned; at once if it is there. UserError says what went wrong and the remedy."""
    url = url if "://" in url else f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/{url}"
    partial = path.with_name(path.name + ".partial")
    why = "the connection breaks off again and again; the same command goes on from there"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(0 if path.exists() else ATTEMPTS):
            time.sleep(max(0, attempt - 1))                # seconds: at once after the first break, then ever more patient
            try:
                if _download(url, partial):
                    partial.replace(path)
                    break
            except urllib.error.HTTPError as error:
                if error.code != 416:
                    raise
                partial.unlink(missing_ok=True)                       # we have more than there is: begin anew
            except (http.client.HTTPException, ConnectionError, TimeoutError):
                pass                                                  # broke off: go on from there
    except OSError as error:           # no network, no such server, HTTP 404 and the like, a full disk
        why = getattr(error, "reason", None) or error.strerror or error
    if not path.exists():
        raise UserError(f"{url} cannot be fetched ({why}): try again, or get it elsewhere and {remedy}")
    return path


def _download(url: str, partial: Path) -> bool:
    """One connection: appends what is missing. True when the file is whole; what fails its check is deleted."""
    have, linked = partial.stat().st_size if partial.exists() else 0, []

    class Redirects(urllib.request.HTTPRedirectHandler):              # the hub tells the SHA-256 before it redirects
        def redirect_request(self, request, file, code, message, headers, target):
            linked.append(headers.get("X-Linked-ETag", ""))
            return super().redirect_request(request, file, code, message, headers, target)

    request = urllib.request.Request(url, headers={"User-Agent": "minirlhf"} | ({"Range": f"bytes={have}-"} if have else {}))
    with urllib.request.build_opener(Redirects()).open(request, timeout=30) as answer:
        tags = [tag.strip('W/"') for tag in (*linked, answer.headers.get("ETag", ""))]
        sha256 = next((tag for tag in tags if re.fullmatch("[0-9a-f]{64}", tag)), None)
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if answer.status == 206 and not (sha256 and span and int(span[1]) == have):       # what nothing can check begins anew
            partial.unlink()
            return False
        have = have if answer.status == 206 else 0
        total = int(span[2] if have else answer.headers.get("Content-Length", -1))
        with partial.open("ab" if have else "wb") as file, tqdm(
                total=max(total, 0) or None, initial=have, desc=partial.stem, unit="B", unit_scale=True,
                disable=not sys.stderr.isatty()) as bar:
            while block := answer.read(2**20):
                file.write(block)
                bar.update(len(block))
    if partial.stat().st_size < total:
        return False
    with partial.open("rb") as file:
        if not sha256 or hashlib.file_digest(file, "sha256").hexdigest() == sha256:
            return True
    partial.unlink()
    raise OSError("what came does not have the SHA-256 that the server announced")
