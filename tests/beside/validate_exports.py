"""Holds exports against readers of others: SARIF by sarif-pydantic (and, with --schema, by jsonschema with
a schema of SARIF 2.1.0), JUnit by xml.etree, inspect's log by inspect_ai.

Needs: pip install sarif-pydantic==0.6.2 inspect-ai==0.3.285 jsonschema
Seen:  no error in the organism's run (96 results) by jsonschema 4.26.0 and the schema 2.1.0-rtm.5 (draft 4)
       that the npm package @microsoft/jest-sarif 1.0.0-beta.0 carries: lib/schemas/sarif-2.1.0-rtm.5.json.
Run:   redeval export RUN --format F --output out.F for F in sarif, junit, inspect; then
       python tests/beside/validate_exports.py out.sarif out.junit out.inspect [--schema FILE]
"""
import argparse
import json
import shutil
import tempfile
from pathlib import Path
from xml.etree import ElementTree


def main() -> None:
    """Read every file; a reader's own error ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--schema", type=Path)
    args = parser.parse_args()
    for path in args.files:
        print(path, {".sarif": sarif, ".junit": junit, ".inspect": inspect}[path.suffix](path, args.schema))


def sarif(path: Path, schema: Path | None) -> str:
    from sarif_pydantic import Sarif
    found = json.loads(path.read_text())
    Sarif.model_validate(found)
    if schema:
        import jsonschema
        jsonschema.validate(found, json.loads(schema.read_text()))
    return f"{len(found['runs'][0]['results'])} results"


def junit(path: Path, schema: Path | None) -> str:
    root = ElementTree.parse(path).getroot()
    for suite in root:
        cases = suite.findall("testcase")
        assert int(suite.get("tests") or -1) == len(cases), suite.get("name")
        assert int(suite.get("failures") or -1) == len(suite.findall("testcase/failure")), suite.get("name")
    return f"{len(root.findall('testsuite/testcase'))} cases"


def inspect(path: Path, schema: Path | None) -> str:
    from inspect_ai.log import read_eval_log
    with tempfile.TemporaryDirectory() as folder:
        log = read_eval_log(shutil.copy(path, Path(folder) / "log.json"))
    assert log.samples and log.results
    return f"{log.status}, {len(log.samples)} samples, {len(log.results.scores)} scores"


if __name__ == "__main__":
    main()
