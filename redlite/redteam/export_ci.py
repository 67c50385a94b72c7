"""A run's results for continuous integration: JUnit XML, and SARIF 2.1.0.

SARIF holds no text of questions or answers: it goes to places that many people read.
"""
from pathlib import Path
from xml.etree import ElementTree

from redlite import __version__
from redlite.redteam import journals, results
from redlite.redteam.export import Exported, judged
from redlite.redteam.gates import Gate, check_gates
from redlite.store.files import sha256_json
from redlite.store.records import read_lines
from redlite.store.text import percent, valid_xml

SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def junit(run: Exported) -> str:
    """A suite of the gates, and one of each prompt with a case for each topic.

    A topic fails where it does not hold a gate on its prompt's ASR; it is skipped where it has no label. The
    run itself fails where it is not complete, or where an ASR stands on too few labels.
    """
    suites = [("redlite gates", [_gate_case(gate) for gate in run.gates])] if run.gates else []
    for prompt, r in (run.asr or {"prompts": {}})["prompts"].items():
        own = [gate for gate in run.asked if gate.measure == f"asr.{prompt}" and not gate.relative]
        topics = r["by_topic"] or {"all questions": r}
        suites.append((f"asr.{prompt}", [_topic_case(name, prompt, t, own) for name, t in topics.items()]))
    if run.bench:
        cases = []
        for name, measure in run.found.items():
            if not name.startswith("asr."):
                case = ElementTree.Element("testcase", name=name, classname="redlite.bench", time="0")
                ElementTree.SubElement(case, "system-out").text = _figures(measure["value"], measure["ci95"])
                cases.append(case)
        suites.append(("benches", cases))
    whole = ElementTree.Element("testcase", name="complete", classname="redlite.run", time="0")
    if not run.complete:
        ElementTree.SubElement(whole, "error", message="the run is not complete", type="incomplete")
    labelled = ElementTree.Element("testcase", name="labelled", classname="redlite.run", time="0")
    if few := results.too_few(run.asr) if run.asr else "":
        ElementTree.SubElement(labelled, "failure", message=valid_xml(few), type="labels")
    suites.append(("redlite run", [whole, labelled] if run.asr else [whole]))
    root = ElementTree.Element("testsuites", name=f"redlite {valid_xml(run.name)}")
    for name, cases in suites:
        counts = {what: str(sum(case.find(tag) is not None for case in cases))
                  for what, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))}
        told = {"name": valid_xml(name), "tests": str(len(cases)), "time": "0", **counts}
        suite = ElementTree.SubElement(root, "testsuite", told)
        suite.extend(cases)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _gate_case(gate: dict) -> ElementTree.Element:
    case = ElementTree.Element("testcase", name=gate["gate"], classname="redlite.gate", time="0")
    if not gate["passed"]:
        ElementTree.SubElement(case, "failure", message=gate["why"], type="gate")
    return case


def _topic_case(topic: str, prompt: str, r: dict, gates: list[Gate]) -> ElementTree.Element:
    case = ElementTree.Element("testcase", name=valid_xml(topic), time="0",
                               classname=f"redlite.asr.{valid_xml(prompt)}")
    if r["asr"] is None:
        ElementTree.SubElement(case, "skipped", message=f"none of {r['n']} answers has a label")
        return case
    measure = {"value": r["asr"], "ci95": r["ci95"], "n": r["n"]}
    failed = [g["gate"] for g in check_gates(gates, {f"asr.{prompt}": measure}, None) if not g["passed"]]
    if failed:
        why = f"{percent(r['asr'])}: {'; '.join(failed)}"
        ElementTree.SubElement(case, "failure", message=why, type="gate")
    ElementTree.SubElement(case, "system-out").text = _figures(r["asr"], r["ci95"])
    return case


def _figures(value: float | None, interval: list[float]) -> str:
    return f"{percent(value)}, 95% interval {percent(interval[0])} to {percent(interval[1])}"


# SARIF

def sarif(run: Exported) -> dict:
    """SARIF 2.1.0: a result for each harmful answer and for each gate, without any text of either side.

    An answer is named by its line in responses.jsonl, and by a hash that stays the same over runs. Source:
    OASIS, Static Analysis Results Interchange Format 2.1.0.
    """
    found: list[dict] = []
    rules: list[dict] = [{"id": "gate", "shortDescription": {"text": "A bound on a measure of the run"},
                          "defaultConfiguration": {"level": "error"}}]
    if run.asr:
        lines = {key: number for number, key in enumerate(_lines(run.parts["redeval"]), 1)}
        for prompt, r in run.asr["prompts"].items():
            text = f"An attack by the prompt {prompt} got a harmful answer (ASR {percent(r['asr'])})"
            rules.append({"id": f"harmful/{prompt}", "shortDescription": {"text": text},
                          "defaultConfiguration": {"level": "warning"}})
        places = [rule["id"] for rule in rules]
        where = (run.parts["redeval"] / journals.RESPONSES).relative_to(run.folder).as_posix()
        for record in judged(run, "SARIF"):
            if record["label"] == "harmful":
                key = journals.AnswerKey(record["id"], record["prompt"], record["sample"])
                found.append(_harmful(record, lines[key], places, where))
    for gate in run.gates:
        kind = {"kind": "pass", "level": "none"} if gate["passed"] else {"kind": "fail", "level": "error"}
        why = "" if gate["passed"] else f": {gate['why']}"
        found.append({"ruleId": "gate", "ruleIndex": 0, **kind,
                      "message": {"text": f"{gate['gate']} {'holds' if gate['passed'] else 'fails'}{why}"}})
    driver = {"name": "redlite", "semanticVersion": __version__, "rules": rules}
    return {"$schema": SARIF, "version": "2.1.0", "runs": [{
        "tool": {"driver": driver}, "results": found, "columnKind": "utf16CodeUnits",
        "invocations": [{"executionSuccessful": run.complete}],
        "properties": {"model": run.name, "judge": (run.asr or run.bench or {})["judge"]}}]}


def _lines(folder: Path) -> list[journals.AnswerKey]:
    """The answers in the order of their lines."""
    records = read_lines(folder / journals.RESPONSES)[0]
    return [journals.AnswerKey(record["id"], record["prompt"], record["sample"]) for record in records]


def _harmful(record: dict, line: int, places: list[str], where: str) -> dict:
    rule = f"harmful/{record['prompt']}"
    sure = record.get("p_harmful")
    by = f"judged harmful by {record['judge']}" + ("" if sure is None else f", probability {sure:.2f}")
    place = {"artifactLocation": {"uri": where}, "region": {"startLine": line}}
    told = {name: record[name] for name in ("topic", "subtopic", "category") if record.get(name)}
    digest = sha256_json([record["id"], record["question"], record["prompt"], record["sample"]])
    return {"ruleId": rule, "ruleIndex": places.index(rule), "level": "warning",
            "message": {"text": f"The answer in line {line} under the prompt {record['prompt']} is {by}."},
            "locations": [{"physicalLocation": place}], "partialFingerprints": {"redlite/v1": digest},
            "properties": {**told, "sample": record["sample"]}}
