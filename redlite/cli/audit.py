"""bin/safealign audit: what the loss does to each token of given conversations."""
import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from redlite import __version__
from redlite.cli.program import DONE
from redlite.cli.progress import note
from redlite.cli.training_options import EMBEDDED, PROGRAM, check_output, chosen_objective, files_of, hashes
from redlite.errors import Error
from redlite.store.files import write_atomic
from redlite.store.run_directory import Run
from redlite.store.text import columns

if TYPE_CHECKING:
    from redlite.training.dataset import Phase
    from redlite.training.ledger import Totals


def run(args: argparse.Namespace, command: str) -> int:
    """The body of `safealign audit`."""
    from redlite.inference import lm
    from redlite.training import dataset, ledger, plan, trainer
    demo = args.model == EMBEDDED and not (args.blue or args.red or args.helpful)
    if demo:
        args.limit = args.limit or 8
        if not args.quiet:
            note(f"{PROGRAM}: the first {args.limit} conversations of each colour of the embedded model "
                 "organism; it says nothing about real models")
    files = files_of(args, demo)
    if not any(files.values()):
        raise Error("--blue, --red and --helpful are missing: name files of conversations to look at")
    objective = chosen_objective(args)
    phase = dataset.Phase(1, {}, objective, plan.parameters(objective, args.preset, args.parameter))
    found, _ = plan.read(files, args.limit)
    parts = lm.parts(args.model, args.template, args.date)
    output = Path(args.output_dir or f"runs/audit-{parts.path.name}")
    manifest = {"command": command, "version": __version__, "seed": args.seed,
                "model": {"name": parts.path.name, "dtype": args.dtype, **lm.fingerprints(parts)},
                "objective": objective, "parameters": phase.parameters, "per": args.per,
                "max_tokens": args.max_tokens, "files": hashes(files), "limit": args.limit}
    pairs = ledger.encoded(found, parts.template, objective, args.max_tokens, args.tokens_per_batch)
    lm.check_device(args.device)
    check_output(output, manifest, parts.path)
    if args.dry_run:
        print(f"would put {len(pairs)} conversations through the objective {objective} and write "
              f"{output}/{ledger.LEDGER}; cost: 0 (this machine)")
        return DONE
    model = lm.LM.load(parts, args.dtype, args.device, trainable=True)
    recipe = trainer.Recipe(tokens_per_batch=args.tokens_per_batch, per=args.per)
    with Run(output, manifest) as directory:
        totals = ledger.write(directory, trainer.Scorer(model.model), pairs, model.template, model.tokenizer,
                              phase, recipe)
        page = _write_page(output, totals, f"{len(pairs)} conversations, {parts.path.name}", phase)
    rows = [["", *next(iter(totals.values()))]]
    rows += [[colour, *map(str, total.values())] for colour, total in totals.items()]
    print("\n".join(columns(rows)))
    print(f"Ledger: {output / ledger.LEDGER}\nPage: {page}", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({"output_dir": str(output), "totals": totals}))
    return DONE


def _write_page(output: Path, totals: "Totals", what: str, phase: "Phase") -> Path:
    """Write the page of a ledger; its path."""
    from redlite.report import ledger_page
    from redlite.training import ledger
    parameters = ", ".join(f"{name}={value:g}" for name, value in (phase.parameters or {}).items())
    lead = f"{what}, objective {phase.objective} {parameters}"
    with open(output / ledger.LEDGER, encoding="utf-8") as lines:
        write_atomic(output / ledger_page.PAGE, ledger_page.page(totals, map(json.loads, lines), lead))
    return output / ledger_page.PAGE
