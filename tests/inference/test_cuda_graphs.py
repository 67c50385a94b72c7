"""Generation steps over static buffers: their bookkeeping everywhere, with a stand-in for the CUDA graph,
and the graph itself on a GPU.
"""
import pytest
import torch
from test_engine import VARIANTS, is_greedy, make, prompts

from redlite import kernels
from redlite.inference import cuda_graphs as graph
from redlite.inference.cuda_graphs import GraphForward, buckets
from redlite.inference.engine import Engine, Request

NO_GPU = "" if torch.cuda.is_available() else "a CUDA graph needs a GPU, and torch sees none"


def test_buckets():
    assert buckets(1) == [1] and buckets(5) == [1, 2, 4, 5]
    assert buckets(32) == [1, 2, 4, 8, 16, 24, 32]
    assert buckets(100) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mixed windows"])
def test_static_steps_generate_what_recomputation_does(name, monkeypatch):
    """The stand-in replays the step itself, and insists on what a graph would take for granted: addresses
    that have not moved.
    """
    model, wanted, captured = make(VARIANTS[name]), prompts(9), []

    def watched(model, cache):
        def addresses():
            return [t.data_ptr() for t in (*cache.keys, *cache.values, inputs)]

        def capture(step, pool):
            out, held = step(), addresses()
            captured.append((len(out), cache.capacity))

            def replay():
                assert addresses() == held
                out.copy_(step())
            return replay, out
        monkeypatch.setattr(graph, "capture", capture)
        graphs = GraphForward(model, cache)
        inputs = graphs.inputs
        return graphs
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(GraphForward, "of", staticmethod(watched))
    lengths = [2 + 3 * i for i in range(len(wanted) - 1)] + [70]  # the last outgrows the cache's first room
    results = dict(Engine(model, 6).run([Request(p, n) for p, n in zip(wanted, lengths, strict=True)]))
    for i, (p, n) in enumerate(zip(wanted, lengths, strict=True)):
        assert is_greedy(model, p, results[i].ids, n), i
    assert {size for size, _ in captured} == {1, 2, 4, 6} and len({room for _, room in captured}) > 1
    assert len(captured) == len(set(captured)), "a step was captured twice"


def test_on_a_cpu_nothing_is_captured_and_on_a_gpu_its_lack_is_told(monkeypatch):
    class Cache:
        device = torch.device("cpu")
    assert GraphForward.of(None, Cache) is None
    Cache.device = torch.device("cuda")
    monkeypatch.setattr(kernels, "implementation", lambda op, device: "reference")
    monkeypatch.setattr(kernels, "why", lambda op, device: "triton is not installed")
    with pytest.warns(UserWarning, match="without CUDA graphs, which is slower: triton is not installed"):
        assert GraphForward.of(None, Cache) is None


@pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)
@pytest.mark.parametrize("format", [None, "int8", "int4"])
def test_captured_steps_give_the_logits_of_plain_ones(format):
    """Over batches that shrink, a prefix, and a cache that grows. Keys are split by the batch size, which
    buckets round up: last bits may differ.
    """
    assert kernels.implementation("cached_attention", "cuda") == "triton"
    model = make(VARIANTS["llama"]).to("cuda")
    if format:
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                weight = module.weight
                del module.weight
                module.weight = kernels.pack(weight, format, torch.float32, "cuda")
    wanted = [Request(p, 3 + 9 * i) for i, p in enumerate(prompts(9))]
    seen = {True: [], False: []}
    for captured in seen:
        with pytest.MonkeyPatch.context() as patch:
            if not captured:
                patch.setattr(GraphForward, "of", staticmethod(lambda model, cache: None))
            patch.setattr(Engine, "_choose",
                          staticmethod(lambda active, logits, plain=Engine._choose,
                                       to=seen[captured]: (to.append(logits.clone()),
                                                           plain(active, logits))[1]))
            results = dict(Engine(model, 8).run(wanted))
            seen[captured].append([results[i].ids for i in range(len(wanted))])
    assert seen[True].pop() == seen[False].pop()
    assert len(seen[True]) == len(seen[False])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4)
               for a, b in zip(seen[True], seen[False], strict=True))
