"""Training a vocabulary by byte-pair encoding (Sennrich et al. 2016), and how one writes bytes."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import regex

from minirlhf import UserError
from minirlhf.tokenizer_files import EOS, GPT2, Spec

# The trainer keeps digits apart, so that a small model can learn sums, and bounds a piece's length.
TRAINING_PIECE = regex.compile(GPT2.replace(r"\p{N}+", r"\p{N}").replace("+", "{1,32}"))

# A vocabulary writes a byte as a visible character: printable Latin-1 as itself, the rest from
# U+0100 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = _PRINTABLE + _OTHERS  # in the order of GPT-2's ids
SYMBOLS = [chr(byte) for byte in _PRINTABLE] + [chr(256 + i) for i in range(len(_OTHERS))]
BYTE_OF_SYMBOL = dict(zip(SYMBOLS, BYTES))


def to_bytes(token: str) -> bytes:
    return bytes(BYTE_OF_SYMBOL[symbol] for symbol in token)


def train(texts: Iterable[str], vocab_size: int) -> Spec:
    """Byte-pair encoding: 256 bytes, then merges, then EOS.

    The vocabulary is smaller than asked for where no pair occurs twice. Of equally frequent
    pairs the one with the smaller ids is merged first: the order of the texts does not matter.
    """
    if vocab_size < 257:
        raise UserError(
            f"a vocabulary of {vocab_size} tokens is too small; 256 bytes and {EOS} make 257"
        )
    pieces = Counter(piece for text in texts for piece in TRAINING_PIECE.findall(text))
    id_of_byte = {byte: i for i, byte in enumerate(BYTES)}
    words = [[id_of_byte[byte] for byte in piece.encode("utf-8", "replace")] for piece in pieces]
    merges = learn_merges(words, list(pieces.values()), vocab_size - 257)
    tokens = list(SYMBOLS)
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    vocab = {token: i for i, token in enumerate([*tokens, EOS])}
    merges = [(tokens[left], tokens[right]) for left, right in merges]
    return Spec(vocab, merges, special_tokens={EOS})


def learn_merges(words: list[list[int]], counts: list[int], wanted: int) -> list[tuple[int, int]]:
    """The most frequent pair of neighbours becomes token 256, the next most frequent 257, ...

    words: ids of each piece; changed in place. counts: how often each occurs. The counts of pairs
    are kept up to date through an index pair -> words. A heap holds them; an entry that is out of
    date goes back with its new count.
    """
    pair_count = Counter()
    words_with = defaultdict(set)
    for w, word in enumerate(words):
        for pair in pairwise(word):
            pair_count[pair] += counts[w]
            words_with[pair].add(w)
    heap = [(-count, pair) for pair, count in pair_count.items()]
    heapq.heapify(heap)

    merges = []
    while len(merges) < wanted and heap:
        negative_count, pair = heapq.heappop(heap)
        if -negative_count != pair_count[pair]:
            heapq.heappush(heap, (-pair_count[pair], pair))
            continue
        if pair_count[pair] < 2:
            break
        new = 256 + len(merges)
        merges.append(pair)
        change = Counter()
        for w in words_with.pop(pair):
            word = merge_pair(words[w], pair, new)
            for neighbours in pairwise(words[w]):
                change[neighbours] -= counts[w]
            for neighbours in pairwise(word):
                change[neighbours] += counts[w]
                if new in neighbours:
                    words_with[neighbours].add(w)
            words[w] = word
        for neighbours, difference in change.items():
            pair_count[neighbours] += difference
            if difference > 0:
                heapq.heappush(heap, (-pair_count[neighbours], neighbours))
    return merges


def merge_pair(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    merged = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new
        else:
            merged.append(token)
    return merged
