"""bin/redeval table: the paper's table over any number of runs."""
import json
from argparse import Namespace

from redlite.cli.bench import counted
from redlite.cli.options import Parser, add_common_options, whole
from redlite.cli.program import DONE, FAILED


def describe(prog: str) -> Parser:
    """The options of `redeval table`."""
    parser = Parser(prog=prog, description=(
        "The paper's table: a row for each model, a column for each question set and prompt, and for each "
        "bench, every\nvalue with its interval. Below stand the differences to the first model, paired by "
        "question or example, where\nthe runs were made alike. Runs, benches and scorecards may be mixed."))
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--format", choices=("text", "markdown", "csv"), default="text",
                        help="default: %(default)s")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the bootstrap (default: 0)")
    add_common_options(parser, "Nothing but what is printed.")
    return parser


def run(args: Namespace, command: str) -> int:
    """The body of `redeval table`."""
    from redlite.redteam import paper_table
    from redlite.store.text import columns, csv_text, markdown_table
    rows = paper_table.rows_of(args.runs, args.seed)
    shown, left = paper_table.table(rows), paper_table.unfinished(args.runs)
    if args.json:
        found = [{"model": row.name, "cells": row.cells, "differences": row.differences, "notes": row.notes}
                 for row in rows]
        print(json.dumps({"rows": found, "unfinished": left}, ensure_ascii=False))
        return FAILED if left else DONE
    if args.format == "csv":
        print(csv_text(shown), end="")
        return FAILED if left else DONE
    print("\n".join(columns(shown) if args.format == "text" else markdown_table(shown)))
    print("\n" + "\n".join(paper_table.notes(rows)))
    for part, missing in left.items():
        print(f"Incomplete: {part} lacks results of {counted(missing)}; run its command again.")
    return FAILED if left else DONE
