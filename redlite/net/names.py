"""How a model behind an API is named on the command line. Imports nothing, so that every command may ask."""

SCHEMES = ("openai", "azure", "anthropic", "gemini", "endpoint")
# A role beside the model under test → the environment's variable for the key of its own endpoint.
OWN_KEYS = {"judge": "JUDGE_API_KEY", "attacker": "ATTACKER_API_KEY"}


def is_api(spec: object) -> bool:
    """Whether a model's or judge's name stands for one behind an API: "openai:NAME", "endpoint:FILE", …"""
    return isinstance(spec, str) and spec.partition(":")[0] in SCHEMES and ":" in spec
