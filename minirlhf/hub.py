"""Published models and data by name, kept in a cache.

huggingface_hub fetches them and reads HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HTTPS_PROXY.
"""

import re
import urllib.request
from pathlib import Path

from minirlhf import UserError
from minirlhf.files import how_to_make, write_atomically

GPT2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # names from before there were owners
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
MODEL_FILES = ["*.json", "merges.txt", "chat_template.jinja", "model*.safetensors"]
HH = "Anthropic/hh-rlhf"  # Bai et al. 2022a: pairs of conversations
HUB_DATA = {  # name -> repository, file of a split
    "hh-helpful-base": (HH, "helpful-base/{}.jsonl.gz"),
    "hh-helpful-online": (HH, "helpful-online/{}.jsonl.gz"),
    "hh-helpful-rejection-sampled": (HH, "helpful-rejection-sampled/{}.jsonl.gz"),
    "hh-harmless-base": (HH, "harmless-base/{}.jsonl.gz"),
    "imdb": ("stanfordnlp/imdb", "plain_text/{}-00000-of-00001.parquet"),  # Maas et al. 2011
}
GITHUB = "https://raw.githubusercontent.com"
TLDR = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/dataset/comparisons"
URL_DATA = {  # name -> URLs of files without splits, the ending under which they are kept
    "alpaca": ([f"{GITHUB}/tatsu-lab/stanford_alpaca/main/alpaca_data.json"], ".json"),
    "shakespeare": ([f"{GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"], ".txt"),
    "tldr": ([f"{TLDR}/batch{i}.json" for i in (*range(3, 21), 22)], ".jsonl"),  # Stiennon 2020
}
DATA = (*HUB_DATA, *URL_DATA)


def model_folder(name: str | Path) -> Path:
    """A folder as it is; a model on the Hugging Face hub (owner/name, gpt2) as a cached folder."""
    path = Path(name)
    if path.exists():
        return path
    repository = str(name)
    if repository in GPT2:
        repository = f"openai-community/{name}"
    if command := how_to_make(path):
        raise UserError(f"{name} does not exist: `{command}` makes it")
    in_a_folder = path.parent != Path() and path.parent.exists()
    if in_a_folder or not REPOSITORY.fullmatch(repository):
        raise UserError(
            f"{name} does not exist: give a folder that a train_*.py wrote, a model on the Hugging "
            f"Face hub (owner/name), or one of {', '.join(GPT2)}"
        )
    return _fetch(repository, MODEL_FILES, ignore_patterns="*/*")  # no subfolders


def data_files(name: str, split: str) -> list[str]:
    """The files of a published data set, one of DATA. Those of URL_DATA mix their splits."""
    if name in HUB_DATA:
        repository, file = HUB_DATA[name]
        file = file.format(split)
        return [str(_fetch(repository, [file], repo_type="dataset") / file)]
    from huggingface_hub.constants import HF_HOME

    urls, ending = URL_DATA[name]
    paths = []
    for url in urls:
        path = Path(HF_HOME, "minirlhf", name, Path(url).stem + ending)
        if not path.exists():
            _download(url, path)
        paths.append(str(path))
    return paths


def is_of_split(name: str, record: dict, split: str) -> bool:
    """Whether a record of a data set belongs to a split; the files of tldr mix theirs."""
    return name != "tldr" or (record.get("split") == "train") == (split == "train")


def _fetch(repository: str, files: list[str], **options) -> Path:
    """The folder of a repository's files in the cache."""
    from huggingface_hub import errors, snapshot_download  # here: scripts shall start fast

    try:
        return Path(snapshot_download(repository, allow_patterns=files, **options))
    except errors.GatedRepoError:
        why = "it is gated: ask for access on its page, then set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        why = (
            "there is neither such a folder here nor such a repository that you may read; for a "
            "private one set HF_TOKEN"
        )
    except Exception as error:  # the network's, the server's, the disk's, the library's own
        reason = str(error.__cause__ or error).strip().partition("\n")[0][:200]
        kind = type(error).__name__
        why = f"{reason or kind}: check the network, or fetch it elsewhere"
    raise UserError(f"{repository} cannot be fetched from the Hugging Face hub; {why}")


def _download(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            content = answer.read()
    except OSError as error:
        raise UserError(
            f"{url} cannot be fetched ({error}): try again, or put a copy of it at {path}"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
