"""--truncate: what is too long for the model is cut instead of left out."""

from minirlhf.chat import Turns
from minirlhf.tokenizer import Tokenizer


def shorten_prompt(tokenizer: Tokenizer, turns: Turns, limit: int) -> Turns:
    """At most `limit` tokens: the oldest turns go, then the beginning of the last one.

    A system turn stays, whatever its length. What is left begins with the user.
    """

    def excess() -> int:
        return len(tokenizer.encode_prompt((*system, *rest))) - limit

    system = turns[:1] if turns and turns[0][0] == "system" else ()
    rest = turns[len(system) :]
    if not rest or excess() <= 0:
        return turns
    while len(rest) > 1 and (excess() > 0 or rest[0][0] in ("assistant", "context")):
        rest = rest[1:]
    role, text = rest[-1]
    while text and excess() > 0:
        ids = tokenizer.encode(text)
        text = tokenizer.decode(ids[excess() :]).lstrip("\ufffd")  # half a character
        rest = ((role, text),)
    return (*system, *rest)


def shorten_beside(
    tokenizer: Tokenizer, prompt: Turns, responses: list[str], context: int
) -> Turns:
    """The prompt gives way to its responses until it has half of the context."""
    longest = max(len(tokenizer.encode_response(prompt, response)) for response in responses)
    return shorten_prompt(tokenizer, prompt, max(context - longest, context // 2))


def encode(
    tokenizer: Tokenizer,
    records: list[tuple[Turns, list[str]]],
    context: int,
    what: str,
    cut: bool,
) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts with their responses -> ids of the prompt, and of each response with EOS.

    what: the records' name in messages, such as "rankings"
    cut: where they are longer than the context, first the prompt loses its beginning, then
        responses their ends, EOS too: nobody stopped there. How many were cut is printed.
    """
    encoded = []
    count = 0
    for prompt, texts in records:
        ids = tokenizer.encode_prompt(prompt)
        response_ids = [tokenizer.encode_response(prompt, text) for text in texts]
        if cut and len(ids) + max(map(len, response_ids)) > context:
            ids = tokenizer.encode_prompt(shorten_beside(tokenizer, prompt, texts, context))
            room = max(1, context - len(ids))
            response_ids = [response[:room] for response in response_ids]
            count += 1
        encoded.append((ids, response_ids))
    say_cut(count, len(encoded), what, context)
    return encoded


def say_cut(count: int, total: int, what: str, limit: int) -> None:
    if count:
        print(f"data: {count} of {total} {what} cut to {limit} tokens")
