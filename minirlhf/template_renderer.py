"""Renders a folder's chat template in a process of its own: `python -P template_renderer.py`.

Jinja's sandbox keeps a stranger's template from running code, but not from endless loops or texts
of gigabytes. chat.py ends this process after some seconds. On Linux its memory is limited too.

Standard input: JSON with "template", "variables" and "conversations", a list of [messages, asks].
Standard output: a JSON list of texts. An error of the template is one of this process.
"""

import json
import re
import sys

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 2**30  # bytes
LONGEST_TEXT = 2**20  # characters


def limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def compile_template(template: str) -> jinja2.Template:
    """Set up as transformers does. Dates stay those that the template falls back on, for there is
    no strftime_now."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.globals["raise_exception"] = raise_exception
    # {% generation %} marks what transformers supervises; it renders what it encloses.
    template = re.sub(r"({%-?\s*)generation(\s*-?%})", r"\1if true\2", template)
    template = re.sub(r"({%-?\s*)endgeneration(\s*-?%})", r"\1endif\2", template)
    return sandbox.from_string(template)


def main() -> None:
    request = json.load(sys.stdin)
    limit_memory()
    template = compile_template(request["template"])
    texts = []
    for messages, asks in request["conversations"]:
        variables = request["variables"] | {"add_generation_prompt": asks}
        text = template.render(messages=messages, **variables)
        if len(text) > LONGEST_TEXT:
            sys.exit("the text is too long")
        texts.append(text)
    json.dump(texts, sys.stdout)


if __name__ == "__main__":
    main()
