"""--truncate: what is too long for the model is cut instead of left out."""

from minirlhf.chat import Turns
from minirlhf.tokenizer import Tokenizer


def shorten_prompt(tokenizer: Tokenizer, turns: Turns, limit: int) -> Turns:
    """At most `limit` tokens: the oldest turns go, then the beginning of the last one.

    A system turn stays. What is left begins with the user.
    """

    def excess() -> int:
        return len(tokenizer.encode_prompt((*system, *rest))) - limit

    system = turns[:1] if turns[0][0] == "system" else ()
    rest = turns[len(system) :]
    while len(rest) > 1 and (excess() > 0 or rest[0][0] in ("assistant", "context")):
        rest = rest[1:]
    role, text = rest[-1]
    while text and excess() > 0:
        ids = tokenizer.encode(text)
        text = tokenizer.decode(ids[max(1, excess()) :])
        rest = ((role, text),)
    return (*system, *rest)


def shorten(
    tokenizer: Tokenizer, prompt: Turns, responses: list[str], context: int
) -> tuple[Turns, list[str]]:
    """A prompt and its responses that fit together.

    The prompt gives way to the responses until it has half of the context; then they lose their
    ends.
    """
    lengths = [len(tokenizer.encode_response(prompt, response)) for response in responses]
    prompt = shorten_prompt(tokenizer, prompt, max(context - max(lengths), context // 2))
    room = context - len(tokenizer.encode_prompt(prompt))
    shortened = []
    for response in responses:
        cut = 0
        while len(tokenizer.encode_response(prompt, response)) > room:
            cut += 1  # a cut text may have more tokens than what was left of it
            response = tokenizer.decode(tokenizer.encode(response)[: max(0, room - cut)])
        shortened.append(response)
    return prompt, shortened
