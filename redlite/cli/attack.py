"""--attack: the options of attacks in which a conversation is replayed or another model asks on."""
import argparse
from argparse import Namespace
from typing import TYPE_CHECKING

from redlite.cli import network
from redlite.cli.options import whole
from redlite.errors import Error

if TYPE_CHECKING:
    from redlite.judges.choice import JudgeChoice, Panel
    from redlite.redteam.api import Network
    from redlite.redteam.attacks import Attack

ATTACKS = ("crescendo", "pair")


def add_attack_options(ask: argparse._ArgumentGroup) -> None:
    """--attack, and what belongs to an attacker."""
    ask.add_argument("--attack", choices=("replay", *ATTACKS),
                     help="replay: the human turns of --conversations, the model's own answers between them; "
                          "crescendo, pair: another model, --attacker, writes the user's messages")
    ask.add_argument("--attacker", metavar="MODEL", help="named as --model is")
    ask.add_argument("--attacker-template", metavar="T",
                     help="a local attacker's chat format, where its own files do not say it")
    ask.add_argument("--attacker-tokens", type=whole(1), metavar="N",
                     help="longest message of the attacker, with what it thinks first (default: 1000)")
    ask.add_argument("--turns", type=whole(1), metavar="N",
                     help="crescendo: messages in the conversation; pair: messages tried (default: 5)")
    ask.add_argument("--backtracks", type=whole(0), metavar="N",
                     help="crescendo: declined messages that are taken back and asked otherwise, at most "
                          "(default: 3)")


def check(args: Namespace, prompts: bool) -> None:
    """Refuse options that do not go together. prompts: whether --prompt is given."""
    writes = args.attack in ATTACKS
    if (args.attack == "replay") != (args.conversations is not None):
        raise Error("--attack replay and --conversations FILE belong together")
    if args.attack == "replay" and (args.questions or prompts):
        raise Error("--attack replay asks what --conversations holds; leave --questions and --prompt out")
    if writes != (args.attacker is not None):
        raise Error("--attack crescendo or pair and --attacker MODEL belong together")
    if writes and prompts:
        raise Error(f"--attack {args.attack}: the attacker writes the messages; leave --prompt out")
    names = ("turns", "backtracks", "attacker_template", "attacker_tokens")
    own = [name for name in names if vars(args)[name] is not None]
    if own and not writes or args.attack == "pair" and args.backtracks is not None:
        which = "backtracks" if writes else own[0].replace("_", "-")
        raise Error(f"--{which}: this attack has none; leave it out")
    if args.attack == "pair" and args.judge == ["none"]:
        raise Error("--attack pair tells the attacker what a judge says; name a judge")


def chosen(args: Namespace, reach: "Network | None",
           judge: "JudgeChoice | Panel | None") -> "tuple[Attack | None, JudgeChoice | Panel | None]":
    """The attack in which a model writes the messages, None for none; and the judge, as it then is."""
    if args.attack not in ATTACKS:
        return None, judge
    from redlite.redteam import attacks
    tells = None
    if args.attack == "pair" and judge:
        judge, tells = attacks.remembering(judge)
    attacker = network.attacker(args, reach)
    attacker.count([{"role": "user", "content": "x"}])
    backtracks = attacks.BACKTRACKS if args.backtracks is None else args.backtracks
    return attacks.Attack(args.attack, attacker, attacks.instructions(args.attack),
                          args.turns or attacks.TURNS, backtracks, tells,
                          args.attacker_tokens or attacks.ATTACKER_TOKENS), judge
