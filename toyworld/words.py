"""The words of the toy world, read from words.txt, which explains its own format."""

from pathlib import Path


def read_words(path: Path) -> dict:
    """{section: its phrases}; a table's are {key: phrases}, a map's {key: text}."""
    words = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            form, _, name = line.strip("[]").rpartition(" ")
            words[name] = {} if form else []
        elif form == "map":
            key, words[name][key] = line.split(": ", 1)
        elif form == "table":
            key, phrases = line.split(": ", 1)
            words[name].setdefault(key, []).extend(phrases.split(" / "))
        else:
            words[name].extend(line.split(" / "))
    return words


WORDS = read_words(Path(__file__).with_name("words.txt"))
