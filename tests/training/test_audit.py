"""The ledger against what training really does, and against the formula in float64."""
import json
import math

import numpy as np
import pytest
import torch
import train_worker as worker
from torch.nn.functional import cross_entropy

from redlite import kernels, loss
from redlite.errors import Error
from redlite.model.sequences import PackedSequences, packed_attention
from redlite.report import ledger_page
from redlite.training import dataset, ledger, trainer
from redlite.training.conversations import Conversation

RECIPE = trainer.Recipe(tokens_per_batch=60)


def by_token(examples, phase, scorer=None) -> dict[tuple, dict]:
    scorer = scorer or trainer.Scorer(worker.model())
    return {(e.id, x["position"]): x
            for e, entries in ledger.ledger(scorer, examples, phase, RECIPE) for x in entries}


@pytest.mark.parametrize("objective", ["A", "B", "hinge", "unlikelihood", "weighted", "npo", "simnpo", "dpo"])
def test_coefficients_are_the_gradients_that_training_applies(objective, monkeypatch):
    """What flows back into token_nll while `trainer.run` does a step is, token by token, what the ledger
    says.
    """
    examples = trainer.references(worker.model(), worker.examples(18), 200)
    drawn = ledger.units(examples, objective)
    phase = dataset.Phase(1, {"all": len(drawn)}, objective,
                          {"tau": 4.7} if objective in ("B", "hinge") else {})
    expected = by_token(examples, phase)
    applied, collate, real = {}, dataset.collate, kernels.token_nll
    places: list = []

    def collating(units, share, device="cpu"):
        # row i predicts token i + 1
        places[:] = [(e.id, i + 1) for unit in units for e in unit for i in range(len(e))]
        return collate(units, share, device)

    def recording(hidden, weight, targets):
        nll, rows = real(hidden, weight, targets), list(places)
        if nll.requires_grad:   # the look at the last weights has none
            nll.register_hook(lambda gradient: applied.update(zip(rows, gradient.tolist(), strict=True)))
        return nll
    monkeypatch.setattr(dataset, "collate", collating)
    monkeypatch.setattr(kernels, "token_nll", recording)
    trainer.run(worker.model(), dataset.Mixture({"all": drawn}, [phase], 0), RECIPE)
    trained = {key: x["coefficient"] for key, x in expected.items() if x["trained"]}
    assert len(trained) > 80 and trained == {key: applied[key] for key in trained}
    assert all(value == 0 for key, value in applied.items() if key not in trained and key in expected)
    if objective != "A":
        assert min(trained.values()) < 0 < max(trained.values())


def test_ledger_is_the_formula():
    """Strategy B written out in float64: NLL, means of responses, counts of each colour over the whole
    batch, the cap.
    """
    model, examples, tau = worker.model(), worker.examples(12), 5.0
    got = by_token(examples, dataset.Phase(1, {}, "B", {"low": 0.5, "high": 0.25, "tau": tau, "blue": 2.0}),
                   trainer.Scorer(model))
    responses = {c: sum(len(e.responses) for e in examples if e.colour == c) for c in loss.COLOURS}
    capped = 0
    for e in examples:
        packed = PackedSequences.of([e.ids.tolist()])
        nll = cross_entropy(model.logits(model(packed.ids, packed.positions,
                                               packed_attention(model.config, packed.offsets)))[:-1].double(),
                            packed.ids[1:], reduction="none")
        assert got[e.id, 0]["nll"] is None
        assert [got[e.id, i + 1]["nll"] for i in range(len(nll))] == pytest.approx(nll.tolist(), abs=1e-4)
        for number, (first, last) in enumerate(e.responses):
            mean = float(nll.detach()[first - 1:last - 1].mean())
            past = e.colour == "red" and mean > tau
            weight = {"helpful": 1.0, "blue": 2.0, "red": -0.25 if past else -0.5}[e.colour]
            for i in range(first, last):
                entry = got[e.id, i]
                assert entry["coefficient"] == pytest.approx(weight / responses[e.colour] / (last - first),
                    rel=1e-6)
                assert entry["capped"] == past and entry["response"] == number and entry["trained"]
            capped += past
    assert 0 < capped < responses["red"]
    assert all(x["coefficient"] == 0 and x["response"] is None and not x["capped"] for x in got.values()
               if not x["trained"])


class Letters:
    """A chat format for tests, one token a character."""

    def encode(self, messages, add_generation_prompt=False):
        from redlite.text.chat import Encoded
        text, trained = "", []
        for m in messages:
            mark = {"system": "<", "user": " U:", "assistant": " A:"}[m["role"]]
            own = m["content"] + ("/" if m["role"] == "assistant" else "")
            text, trained = text + mark + own, trained + [False] * len(mark) + [m["role"]
                == "assistant"] * len(own)
        if add_generation_prompt:
            text, trained = text + " A:", trained + [False] * 3
        return Encoded([ord(c) % 97 for c in text], trained)

    def piece_bytes(self, token):
        return b"<&>"


def test_roles():
    messages = ({"role": "system", "content": "Be kind"}, {"role": "user", "content": "Zoo?"},
                {"role": "assistant", "content": "Yes"},
                {"role": "user", "content": "Ok"}, {"role": "assistant", "content": "Bye"})
    conversation = Conversation("1", "Zoo?", "blue", messages)
    example = dataset.encode(conversation, Letters(), 100)
    found = ledger.roles(conversation, example, Letters())
    expected = [("s", "<Be kind U:"), ("u", "Zoo? A:"), ("a", "Yes/"), ("u", " U:Ok A:"), ("a", "Bye/")]
    assert "".join(r[0] for r in found) == "".join(who * len(text) for who, text in expected)


def test_files(tmp_path):
    """One line a token, totals that add up, and a page that shows tokens as text."""
    from redlite.store.run_directory import Run
    found = [Conversation(str(i), f"q{i}", c,
                          ({"role": "user", "content": f"q{i}"},
                           {"role": "assistant", "content": "reply " * (i + 1)}))
             for i, c in enumerate(("blue", "red", "helpful"))]
    with Run(tmp_path, {"test": 1}) as directory:
        totals = ledger.write(directory, trainer.Scorer(worker.model()),
                              ledger.encoded(found, Letters(), "B", 100, 200), Letters(), Letters(),
                             dataset.Phase(1, {}, "B", loss.PRESETS["paper"]),
                              trainer.Recipe(tokens_per_batch=200))
    lines = [json.loads(line) for line in (tmp_path / ledger.LEDGER).read_text().splitlines()]
    assert len(lines) == sum(t["tokens"] for t in totals.values())
    assert totals["red"]["lowered"] == totals["red"]["trained"] == 13
    assert totals["blue"]["raised"] == totals["blue"]["trained"] == 7 and totals["helpful"]["capped"] == 0
    assert {"conversation", "colour", "position", "token", "text", "role", "trained", "nll", "coefficient",
            "capped", "response"} == set(lines[0])
    assert math.isclose(sum(x["coefficient"] for x in lines if x["colour"] == "blue"), 1.0, rel_tol=1e-6)
    text = ledger_page.page(totals, lines, "a test <b>")
    assert "<&>" not in text and "&lt;&amp;&gt;" in text
    assert "a test &lt;b&gt;" in text and text.count("<article>") == 3
    assert np.isfinite([x["nll"] for x in lines if x["position"]]).all() and torch.is_grad_enabled()


def test_nothing_to_show_is_said():
    """Answers that are all cut off, a pairwise objective without a pair, a conversation larger than a
    micro-batch.
    """
    red = [Conversation("1", "q", "red",
                        ({"role": "user", "content": "q"}, {"role": "assistant", "content": "reply"}))]
    for objective, tokens, size, message in (("B", 3, 200, "max_tokens"), ("dpo", 100, 200, "no such pair"),
                                             ("B", 100, 8,
                                              "'1' has .* tokens, more than a micro-batch of 8")):
        with pytest.raises(Error, match=message):
            ledger.encoded(red, Letters(), objective, tokens, size)
