"""API models on the command line: their options, and the choice between them and local ones."""
import argparse
import os
from typing import TYPE_CHECKING

from redlite.cli.options import whole
from redlite.cli.progress import note_kernels
from redlite.errors import Error
from redlite.net import offline

if TYPE_CHECKING:
    from redlite.judges.choice import JudgeChoice, Panel
    from redlite.redteam.answerers import ModelChoice
    from redlite.redteam.api import Network

PREFIX = "openai:"
BARE = ("rules", "linear", "none")  # judges that are no models


def add_api_options(parser: argparse.ArgumentParser) -> None:
    """The options that matter for openai:NAME models and judges."""
    group = parser.add_argument_group(
        "API models", "openai:NAME is a model behind an OpenAI-compatible endpoint; "
        "the key comes from OPENAI_API_KEY")
    group.add_argument("--base-url", metavar="URL",
                       help="the endpoint, such as http://127.0.0.1:8000/v1 (default: OPENAI_BASE_URL, "
                            "else the vendor's)")
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


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def network(args: argparse.Namespace, *specs: str | None) -> "Network | None":
    """The way to the endpoint of the openai: names among the specs, opened; None, and no way, if there is
    none."""
    named = [spec for spec in specs if spec and spec.startswith(PREFIX)]
    if not named:
        return None
    if args.offline:
        raise Error(f"--offline: {named[0]} is behind an endpoint; "
                    "leave --offline out, or name a local model")
    if args.max_cost is not None and not args.price_file:
        raise Error("--max-cost: needs --price-file")
    from redlite.net.endpoints import model_name
    from redlite.redteam import api
    base_url = args.base_url or os.environ.get("OPENAI_BASE_URL")
    reach = api.Network(base_url, args.max_requests, args.max_tokens_total, args.max_cost, args.price_file,
                        args.concurrency)
    for spec in named:
        offline.allow(reach.endpoint(model_name(spec)).reached)
    return reach


def model(args: argparse.Namespace, reach: "Network | None", spec: str,
          adapter: str | None = None) -> "ModelChoice":
    """The model that --model means. reach: of `network`; adapter: what --adapter names."""
    from redlite.redteam import answerers
    if reach and spec.startswith(PREFIX):
        if adapter:
            raise Error("--adapter goes with a model on this machine; leave it out")
        return reach.model(spec)
    found = answerers.local_model(
        spec, args.dtype, args.device, args.quantize, args.template, args.batch_size, args.date, adapter)
    note_kernels()  # before the work begins
    return found


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
                  lambda spec: spec not in BARE and not spec.startswith(PREFIX)):
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
    if reach and spec.startswith(PREFIX):
        if template:
            raise Error(f"judge {spec}: its endpoint knows its chat format; leave --judge-template out")
        return reach.judge(spec, form, prompt)
    return choice.local_judge(spec, form, prompt, args.dtype, args.device, template)
