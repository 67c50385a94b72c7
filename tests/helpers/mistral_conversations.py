"""Twelve conversations that end with the user, as mistral-common takes them."""


def _talk(*contents, system=None):
    first = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return first + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


CONVERSATIONS = [
    _talk("Hello"), _talk("Hello", "Hi there.", "Bye"), _talk("Hello", system="Be brief."),
    _talk("Hi", "Yo", "And now?", system="Be brief."), _talk("  two spaces  ", "a  ", "\tb\n"),
    _talk("Grüße 世界 😀", "ℵ", "é"), _talk("[INST] x [/INST]</s><s>", "[TOOL_CALLS]", "[SYSTEM_PROMPT]"),
    _talk("a\n\nb", "c\n", "d", "e", "f", system="S\n"), _talk("1234567", "89", "x = {'a': 1}\n    return x"),
    _talk("x", "\n\nanswer", "y"), _talk(" ", "b", " "), _talk("don't", "I'M", "we'll", system="  s  "),
]
