"""Every family against transformers: logits and 48 greedy ids, in PyTorch and in C.

tests/beside/make_model_goldens.py made the numbers, with transformers 5.24.0 in float32.
"""
import numpy as np
import pytest
import torch
from family_models import GOLDEN, PATHS, SMALL_IDS, directory, load, run
from make_model_goldens import NEW, SHOWN_SMALL
from safetensors.numpy import load_file

from redlite.errors import Error
from redlite.inference.cache import Cache
from redlite.inference.engine import Engine, Request
from redlite.inference.forward import CForward
from redlite.inference.score import score
from redlite.model import lora
from redlite.model.families import FAMILIES
from redlite.model.llama import LLaMA
from redlite.model.parameters import shapes
from redlite.model.sequences import PackedSequences, packed_attention
from redlite.weights import checkpoint
from redlite.weights.save import save_pretrained


def test_every_family_has_a_golden():
    assert {case["config"]["model_type"] for case in GOLDEN.values()} | {"mistral"} == set(FAMILIES)


@torch.no_grad()
@pytest.mark.parametrize("packed", PATHS)
@pytest.mark.parametrize("name", GOLDEN)
def test_logits_and_greedy_ids(name, packed, tmp_path):
    case, model = GOLDEN[name], load(directory(name, tmp_path, "given" if packed else "config"), packed)
    got = run(model, [SMALL_IDS])
    assert case["absmax"] > 1
    assert (got[::5, SHOWN_SMALL] - torch.tensor(case["logits"])).abs().max() <= 2e-4
    requests = [Request(SMALL_IDS[:12], NEW), Request(SMALL_IDS[3:20], 9)]  # beside another prompt
    assert dict(Engine(model).run(requests))[0].ids == case["greedy"]
    if packed:  # all layers in one call
        assert CForward.of(model, Cache(model.config, 1, torch.float32, torch.device("cpu")))
        assert all(block.packed for block in model.blocks)


@torch.no_grad()
@pytest.mark.parametrize("packed", PATHS)
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo3 yarn", "phi3 longrope", "smollm3 window"])
def test_packing_and_scores(name, packed, tmp_path):
    """Sequences packed end to end do not see each other, and scores are those of the logits."""
    model = load(directory(name, tmp_path), packed)
    pieces = [SMALL_IDS[:17], SMALL_IDS[17:18], SMALL_IDS[18:50]]
    alone = torch.cat([run(model, [p]) for p in pieces])
    assert (run(model, pieces) - alone).abs().max() <= 2e-5
    pairs = [(SMALL_IDS[:9], SMALL_IDS[9:14]), (SMALL_IDS[:9], SMALL_IDS[20:22]), (SMALL_IDS[:4], [5])]
    for (context, more), found in zip(pairs, score(model, pairs), strict=True):
        logp = torch.log_softmax(run(model, [context + more]).double(), -1)
        wanted = sum(float(logp[len(context) - 1 + i, t]) for i, t in enumerate(more))
        assert found.logprob == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_are_named_without_the_model(name, tmp_path):
    config, _ = checkpoint.read_config(directory(name, tmp_path))
    with torch.device("meta"):
        model = LLaMA(config)
    assert shapes(config) == {n: tuple(p.shape) for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", GOLDEN)
def test_weights_are_counted_without_the_model(name, tmp_path):
    model = load(directory(name, tmp_path))
    assert model.config.weights == sum(p.numel() for p in model.parameters() if p.dim() == 2)


@pytest.mark.parametrize("name", GOLDEN)
def test_saved_and_loaded_again(name, tmp_path):
    """The directory that redlite writes has the configuration, and tensors under transformers' names."""
    (tmp_path / "a").mkdir()
    model = load(directory(name, tmp_path / "a"))
    save_pretrained(model, tmp_path / "b")
    assert checkpoint.read_config(tmp_path / "b")[0] == model.config
    old, new = (load_file(tmp_path / f / "model.safetensors") for f in "ab")
    assert old.keys() == new.keys() and all(np.array_equal(old[n], new[n]) for n in old)


@pytest.mark.parametrize("name", GOLDEN)
def test_gradients(name, tmp_path):
    """The gradient of the loss along a random direction is the difference quotient."""
    model = load(directory(name, tmp_path))
    for parameter_name, p in model.named_parameters():
        if parameter_name.endswith("act_fn.eps"):  # the golden's own makes the activation jump at 0
            p.data.fill_(-1e-6)
    targets = torch.tensor([*SMALL_IDS[1:12], -100])
    packed = PackedSequences.of([SMALL_IDS[:5], SMALL_IDS[5:12]])

    def loss():
        hidden = model(packed.ids, packed.positions, packed_attention(model.config, packed.offsets),
                       packed.lengths)
        logits = torch.nn.functional.linear(hidden, model.output_weight)
        if model.config.logit_cap:
            logits = model.config.logit_cap * torch.tanh(logits / model.config.logit_cap)
        return torch.nn.functional.cross_entropy(logits, targets)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(), trained)
    assert all(g.abs().max() > 0 for g in gradients)
    generator = torch.Generator().manual_seed(0)
    step = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * 1e-4 for p in trained]
    with torch.no_grad():
        values = []
        for sign in (1, -2):
            for p, d in zip(trained, step, strict=True):
                p.add_(sign * d)
            values.append(float(loss()))
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, step, strict=True))
    assert (values[0] - values[1]) / 2 == pytest.approx(expected, rel=2e-2, abs=3e-6)


def test_capped_logits_have_the_losses_of_the_logits(tmp_path):
    """The trainer's loss with a soft cap, made a few rows at a time, and its gradient."""
    model = load(directory("gemma2", tmp_path))
    hidden = torch.randn(700, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.randint(0, 97, (700,), generator=torch.Generator().manual_seed(1))
    targets[::7] = -100
    got = model.token_nll(hidden, targets)
    cap = model.config.logit_cap
    logits = cap * torch.tanh(hidden.double() @ model.output_weight.double().T / cap)
    wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert (got.double() - wanted).abs().max() < 1e-5 and bool((got[::7] == 0).all())
    ours, theirs = (torch.autograd.grad(x.sum(), hidden)[0] for x in (got, wanted))
    assert (ours - theirs).abs().max() < 1e-5


def test_lora_takes_every_matrix_of_a_family(tmp_path):
    """StarCoder2 has no gate and other names; Phi-3's files have one matrix where the model has three."""
    for name in ("starcoder2", "phi3"):
        (tmp_path / name).mkdir()
    model = lora.attach(load(directory("starcoder2", tmp_path / "starcoder2")), 2)
    assert {n.rpartition(".")[2] for n in lora.adapters(model)} == {"q_proj", "k_proj", "v_proj", "o_proj",
                                                                    "c_fc", "c_proj"}
    with pytest.raises(Error, match="phi3 models keep q, k and v as one matrix"):
        lora.attach(load(directory("phi3", tmp_path / "phi3")), 2)
