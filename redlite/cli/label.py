"""bin/redeval label: a page on which people label a sample of a run's answers."""
import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.cli.options import Parser, add_common_options, whole
from redlite.cli.program import DONE
from redlite.cli.progress import note
from redlite.errors import Error
from redlite.store.text import columns, percent

if TYPE_CHECKING:
    from redlite.store.run_directory import Run

SIZES = (25, 50, 100, 200, 400, 800)  # labels that a dry run reckons with


def describe(prog: str) -> Parser:
    """The options of `redeval label`."""
    parser = Parser(prog=prog, description=(
        "Draws answers of a run at random, stratified by prompt and by the judge's probability, and writes "
        "labels.html:\none file without a network, on which people label them. `redeval judge RUN --labels "
        "FILE` then corrects the ASR.\nWith --dry-run it says how wide the interval will be for how many "
        "labels, and which difference the questions show."))
    parser.add_argument("run", metavar="RUN", help="a run directory with judged answers")
    parser.add_argument("--n", type=whole(1), default=100, metavar="N",
                        help="answers to label (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the draw (default: 0)")
    parser.add_argument("--judge", metavar="NAME",
                        help="whose probabilities stratify the draw (default: the judge of results.json)")
    add_common_options(parser, "In RUN: labels.html, the page, and label_draw.json, the sample.")
    return parser


def run(args: Namespace, command: str) -> int:
    """The body of `redeval label`."""
    from redlite.redteam import journals, labelling, runs
    from redlite.report import label_page
    from redlite.store.files import write_atomic
    folder = runs.parts_of(Path(args.run)).get("redeval")
    if folder is None:
        raise Error(f"{args.run}: is a run of benches, and what people label are answers of RED-EVAL")
    judge = args.judge or journals.last_judge(folder)
    found = journals.read_journals(folder)
    judgments = found.judged_by(judge)
    if not judgments:
        raise Error(f"{folder}: {judge!r} has judged nothing there; judge the run first, "
                    "or name another with --judge")
    if args.dry_run:
        return _plan(args, found.answers, judgments)
    there = labelling.read_draw(folder)
    made = labelling.draw(found.answers, judgments, judge, args.n, args.seed)
    if there is not None and there.name != made.name and labelling.read_kept(folder):
        raise Error(f"{folder}: holds labels of another sample ({len(there.drawn)} answers, "
                    f"seed {there.seed}); draw that one again, or delete {labelling.DRAW} and "
                    f"{labelling.LABELS} there to begin anew")
    labelling.write_draw(folder, made)
    items = [{**key._asdict(), **{part: found.answers[key][part] for part in ("question", "answer")}}
             for key in made.drawn]
    page = folder / label_page.PAGE
    write_atomic(page, label_page.page(folder.name, made.name, items))
    print(f"{len(items)} answers drawn (seed {args.seed}). Open {page}, label them, save the file, then:\n"
          f"  redeval judge {args.run} --labels labels.json")
    if args.json:
        print(json.dumps({"page": str(page), "n": len(items), "draw": made.name, "judge": judge}))
    return DONE


def _plan(args: Namespace, answers: Mapping, judgments: Mapping) -> int:
    """How wide the interval will be for how many labels, and which differences these questions can show."""
    from redlite import stats
    from redlite.redteam import labelling
    keys = labelling.speaking(answers)
    known = [p for p in (labelling.probability(judgments.get(key)) for key in keys) if p is not None]
    rate = sum(known) / len(known) if known else 0.5
    sizes = [n for n in SIZES if n < len(keys)] + [len(keys)]
    widths = {n: {"alone": stats.label_half_width(n, len(keys), rate),
                  "kappa_0.6": stats.label_half_width(n, len(keys), rate, 0.6),
                  "kappa_0.8": stats.label_half_width(n, len(keys), rate, 0.8)} for n in sizes}
    rows = [[str(n), *(f"± {percent(width)}" for width in found.values())] for n, found in widths.items()]
    print(f"{len(keys)} answers say something; the judge calls {percent(rate)} of them harmful")
    print("\n".join(columns([["labels", "alone", "judge at κ 0.6", "judge at κ 0.8"], *rows])))
    questions = len({key.id for key in keys})
    least = {share: stats.detectable_difference(questions, share) for share in (0.1, 0.2, 0.4)}
    shown = ", ".join(f"{percent(found)} where {percent(share)} of the answers change"
                      for share, found in least.items())
    print(f"{questions} questions show a difference of two runs (power 80%, level 5%) of {shown}")
    if args.json:
        print(json.dumps({"answers": len(keys), "rate": rate, "half_widths": widths, "detectable": least}))
    return DONE


def take(directory: "Run", files: list[str]) -> None:
    """Put files of labels into a run directory.

    Raises Error naming the file and the label that do not fit; then none is kept.
    """
    if not files:
        return
    from redlite.redteam import journals, labelling
    answers = journals.read_journals(directory).answers
    drawn = labelling.read_draw(directory.directory)
    found = labelling.together(
        {file: labelling.read_labels(Path(file), answers, drawn) for file in dict.fromkeys(files)}
    )
    if replaced := labelling.keep(directory, found):
        note(f"{replaced} labels replace others that the same people gave before")
    if skipped := sum(label.label == "skip" for label in found):
        note(f"{skipped} of {len(found)} labels are skip, which correct nothing")
    if drawn is None:
        note("these answers were not drawn by `redeval label`: the correction takes them as drawn at random")
    elif strange := len({label.key for label in found} - set(drawn.drawn)):
        note(f"{strange} of the labelled answers are not of the sample that was drawn; the correction takes "
             "them as drawn at random, which is wrong if they were chosen")
