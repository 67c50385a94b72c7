"""How a model behind an API is named on the command line. Imports nothing, so that every command may ask."""

SCHEMES = ("openai", "azure", "anthropic", "gemini", "endpoint")
JUDGE_KEY = "JUDGE_API_KEY"     # the environment's variable for the key of a judge's own endpoint


def is_api(spec: object) -> bool:
    """Whether a model's or judge's name stands for one behind an API: "openai:NAME", "endpoint:FILE", …"""
    return isinstance(spec, str) and spec.partition(":")[0] in SCHEMES and ":" in spec
