"""What a judge is asked: which of two responses follows a principle better; what is wrong with one; to write it anew."""
import re

from minirlhf.tokenizer import ASSISTANT, HUMAN

JUDGE = ("Principle: {principle}\nRequest: {request}\nA: {a}\nB: {b}\nWhich response follows the principle better? "
         "Answer with A or B alone.")
CRITIQUE = ("Principle: {principle}\nRequest: {request}\nResponse: {response}\nHow does the response go against the principle? "
            "Answer in one sentence.")
REVISE = ("Request: {request}\nResponse: {response}\nCritique: {critique}\nWrite the response anew, without what the critique "
          "finds wrong. Answer with the new response alone.")


def ask(template: str, prompt: str, **texts: str) -> str:
    """A question about a request as one human turn; a request of several turns is quoted line by line."""
    def flat(text: str) -> str:                # without blank lines no text can begin a turn of the conversation that quotes it
        return re.sub(r"\n\s*\n", "\n", text).strip()

    request = flat(prompt.removesuffix(ASSISTANT))
    request = request if request.count("Human:") > 1 else request.removeprefix("Human:").strip()
    return f"{HUMAN} {template.format(request=request, **{k: flat(v) for k, v in texts.items()})}{ASSISTANT}"
