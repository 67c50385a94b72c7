"""API models on the command line: their options, and the choice between them and local ones."""
import argparse
from typing import TYPE_CHECKING

from redlite.cli.options import Add, whole
from redlite.cli.progress import note_kernels
from redlite.errors import Error
from redlite.net import offline
from redlite.net.names import is_api

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redlite.judges.choice import JudgeChoice, Panel
    from redlite.redteam.answerers import ModelChoice
    from redlite.redteam.api import Network, Way

BARE = ("rules", "linear", "none")  # judges that are no models


def add_api_options(parser: argparse.ArgumentParser, judges: bool = True, attacks: bool = False) -> None:
    """The options that matter for models and judges behind an API.

    judges, attacks  whether the command has a judge, an attacker
    """
    group = parser.add_argument_group(
        "API models", "openai:NAME (any OpenAI-compatible endpoint), azure:DEPLOYMENT, anthropic:NAME, "
        "gemini:NAME, or endpoint:FILE, which describes any HTTP endpoint (README); keys come from "
        "OPENAI_API_KEY, AZURE_OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY")
    _add_way(group, "", "the endpoint, such as http://127.0.0.1:8000/v1 (default: OPENAI_BASE_URL or the "
                        "provider's like, else the vendor's)")
    if judges:
        _add_way(group, "judge-", "an endpoint of the judge's own, with its key in JUDGE_API_KEY, else the "
                                  "provider's (default: the model's, where it is of the same kind)")
    if attacks:
        _add_way(group, "attacker-", "an endpoint of the attacker's own, with its key in ATTACKER_API_KEY, "
                                     "else the provider's (default: as the judge's)")
    group.add_argument("--api-version", metavar="V",
                       help="Azure's (default: OPENAI_API_VERSION, else 2024-10-21)")
    group.add_argument("--timeout", type=_positive, metavar="S",
                       help="seconds that a reply may take (default: 300)")
    group.add_argument("--retries", type=whole(0), metavar="N",
                       help="how often a request that failed is made again (default: 7)")
    group.add_argument("--concurrency", type=whole(1), default=16, metavar="N",
                       help="requests under way at once; fewer if the server says so (default: %(default)s)")
    group.add_argument("--max-requests", type=whole(1), metavar="N",
                       help="stop before more answers than this are paid for")
    group.add_argument("--max-tokens-total", type=whole(1), metavar="N",
                       help="stop before a request that might pass this many tokens")
    group.add_argument("--max-cost", type=_positive, metavar="DOLLARS",
                       help="stop before a request that might pass this cost; needs --price-file")
    group.add_argument("--price-file", metavar="FILE",
                       help='JSON: {"NAME": {"prompt": DOLLARS, "completion": DOLLARS}} per million tokens')


def _add_way(group: argparse._ArgumentGroup, of: str, help: str) -> None:
    """--base-url, --header, --extra-body, or those of another role. of: "", "judge-" or "attacker-"."""
    whose = f"the {of.rstrip('-')}'s requests" if of else "each request"
    group.add_argument(f"--{of}base-url", metavar="URL", help=help)
    group.add_argument(f"--{of}header", action=Add, type=_header, metavar="NAME:VALUE",
                       help=f"goes along with {whose}; may be repeated; values are never written anywhere")
    group.add_argument(f"--{of}extra-body", metavar="FILE",
                       help=f"a JSON object that is merged into {whose}; null removes a field")


def _header(text: str) -> tuple[str, str]:
    name, found, value = text.partition(":")
    name, value = name.strip(), value.strip()
    token = all(c.isascii() and (c.isalnum() or c in "!#$%&'*+-.^_`|~") for c in name)
    if not found or not name or not token or not (value.isascii() and value.isprintable()):
        raise argparse.ArgumentTypeError("is no NAME:VALUE in ASCII")   # its value may be a secret
    return name, value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def network(args: argparse.Namespace, *specs: str | None) -> "Network | None":
    """The ways to the endpoints of the API models among the specs, opened; None where there is none.

    Raises Error, before any other work, for a key that is missing or refused and a model that is not there.
    """
    named = [spec for spec in specs if spec and is_api(spec)]
    if not named:
        return None
    if args.offline:
        raise Error(f"--offline: {named[0]} is behind an endpoint; "
                    "leave --offline out, or name a local model")
    if args.max_cost is not None and not args.price_file:
        raise Error("--max-cost: needs --price-file")
    from redlite.net.client import check
    from redlite.redteam import api
    asked = getattr(args, "judge", None) or []
    judging = [asked] if isinstance(asked, str) else asked
    attacker = getattr(args, "attacker", None)
    models = [spec for spec in named if spec == getattr(args, "model", None)]
    own = {"judge": _own_way(args, "judge_", models, judging),
           "attacker": _own_way(args, "attacker_", models, [attacker])}
    reach = api.Network(_way(args, ""), {role: way for role, way in own.items() if way}, args.max_requests,
                        args.max_tokens_total, args.max_cost, args.price_file, args.concurrency, args.timeout,
                        args.retries)
    roles = [*((spec, "model") for spec in models), *((spec, "judge") for spec in named if spec in judging),
             *((spec, "attacker") for spec in named if spec == attacker)]
    for spec, role in dict.fromkeys(roles):
        endpoint = reach.endpoint(spec, role)
        reach.bound(spec, 0, 0, role)       # its prices
        offline.allow(endpoint.reached)
        if not args.dry_run:
            check(endpoint)
    return reach


def _way(args: argparse.Namespace, of: str) -> "Way":
    from redlite.redteam.api import Way
    given = vars(args)
    return Way(given[f"{of}base_url"] or "", tuple(given[f"{of}header"] or ()),
               _extra(of, given[f"{of}extra_body"]), args.api_version or "")


def _own_way(args: argparse.Namespace, of: str, models: list[str],
             specs: "list[str] | list[str | None]") -> "Way | None":
    """A judge's or attacker's own way; None where it goes the model's.

    An API model's fields belong to that model. Its address and headers serve others of the same kind.
    of     "judge_" or "attacker_"
    specs  the judges, or the attacker
    """
    if not hasattr(args, f"{of}base_url"):
        return None
    from dataclasses import replace
    own, way = _way(args, of), _way(args, "")
    alike = {spec.partition(":")[0] for spec in models} == {
        spec.partition(":")[0] for spec in specs if spec and is_api(spec)}
    if models and not own.base_url and alike:
        return replace(own, base_url=way.base_url, headers=own.headers or way.headers)
    if models:
        return own
    extra = way.extra if own.extra is None else own.extra
    return replace(own, base_url=own.base_url or way.base_url, headers=own.headers or way.headers,
                   extra=extra)


def _extra(of: str, path: str | None) -> dict | None:
    if path is None:
        return None
    from redlite.store.files import read_json
    where = f"--{of.replace('_', '-')}extra-body {path}"
    found = read_json(path, where)
    if not isinstance(found, dict):
        raise Error(f"{where}: must hold a JSON object")
    if found.get("stream"):
        raise Error(f"{where}: streams cannot be read here; leave 'stream' out")
    return found


def price(costs: dict[str, float | None]) -> tuple[str, float | None]:
    """(what a dry run says of the cost, dollars at most).

    costs  what is paid for → dollars; None: unknown
    """
    known = [cost for cost in costs.values() if cost is not None]
    if len(known) < len(costs):
        return "unknown; give --price-file FILE", None
    if not any(known):
        return "0 (this machine)", 0.0
    parts = ", ".join(f"{name} {_dollars(cost)}" for name, cost in costs.items() if cost)
    return f"{_dollars(sum(known))} dollars at most ({parts})", sum(known)


def _dollars(cost: float) -> str:
    return f"{cost:.2f}" if cost >= 1 else f"{cost:.2g}"


def longest_answer(tokens: int) -> str:
    """As long a text as an answer of so many tokens is at most, roughly."""
    return "x" * (4 * tokens)


def judging_cost(judge: "JudgeChoice | Panel | None",
                 pairs: "Iterable[tuple[str, str]]") -> dict[str, float | None]:
    """Dollars at most for each judge that is to judge these; for `price`."""
    from redlite.judges.choice import members
    judged = list(pairs)
    return {f"judge {one.name}": one.cost(judged) for one in members(judge)} if judge else {}


def model(args: argparse.Namespace, reach: "Network | None", spec: str,
          adapter: str | None = None) -> "ModelChoice":
    """The model that --model means. reach: of `network`; adapter: what --adapter names."""
    from redlite.redteam import answerers
    if reach and is_api(spec):
        if adapter:
            raise Error("--adapter goes with a model on this machine; leave it out")
        return reach.model(spec)
    found = answerers.local_model(
        spec, args.dtype, args.device, args.quantize, args.template, args.batch_size, args.date, adapter,
        args.cache_memory, plan=args.dry_run)
    if not args.dry_run:
        note_kernels()  # before the work begins
    return found


def attacker(args: argparse.Namespace, reach: "Network | None") -> "ModelChoice":
    """The model that --attacker means. reach: of `network`."""
    if reach and is_api(args.attacker):
        return reach.model(args.attacker, "attacker")
    from redlite.redteam import answerers
    return answerers.local_model(args.attacker, args.dtype, args.device, None, args.attacker_template,
                                 args.batch_size, args.date)


def judge(args: argparse.Namespace, reach: "Network | None") -> "JudgeChoice | None":
    """The one judge that --judge means; None for none. reach: of `network`."""
    return _judge(args, reach, args.judge, args.judge_format, args.judge_prompt, None)


def judges(args: argparse.Namespace, reach: "Network | None") -> "JudgeChoice | Panel | None":
    """The judge that --judge means, or all that it names; None for none. reach: of `network`."""
    from redlite.judges import choice
    formats = _formats(args)
    takers = [spec for spec in args.judge if spec not in BARE]
    if len(takers) != 1 and (args.judge_prompt or args.judge_template):
        raise Error("--judge-prompt and --judge-template go with exactly one judge model; leave them out")
    found = []
    for spec, form in zip(args.judge, formats, strict=True):
        own = (None, None) if takers and spec in BARE else (args.judge_prompt, args.judge_template)
        found.append(_judge(args, reach, spec, form, *own))
    named = [one for one in found if one is not None]
    if len(named) < len(found) and len(found) > 1:
        raise Error("--judge none: judges nothing; name no other judge beside it, or leave it out")
    if args.threshold is not None:
        named = [choice.thresholded(one, args.threshold) for one in named]
    return choice.panel(named, args.verdict) if named else None


def _formats(args: argparse.Namespace) -> list[str | None]:
    """The format of each judge: those given, in their order, for the models; an API model needs none."""
    given = args.judge_format or []
    for takes in (lambda spec: spec not in BARE,
                  lambda spec: spec not in BARE and not is_api(spec)):
        if sum(map(takes, args.judge)) == len(given):
            left = iter(given)
            return [next(left) if takes(spec) else None for spec in args.judge]
    if len(args.judge) == 1 and len(given) <= 1:
        return [given[0] if given else None]
    raise Error(
        f"--judge-format: {len(given)} are given; give one for each judge model, in the judges' order")


def _judge(args: argparse.Namespace, reach: "Network | None", spec: str, form: str | None, prompt: str | None,
           template: str | None) -> "JudgeChoice | None":
    from redlite.judges import choice
    if reach and is_api(spec):
        if template:
            raise Error(f"judge {spec}: its endpoint knows its chat format; leave --judge-template out")
        return reach.judge(spec, form, prompt)
    return choice.local_judge(spec, form, prompt, args.dtype, args.device, template)
