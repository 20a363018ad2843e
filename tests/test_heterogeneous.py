"""The search of levels and bits: the same again, resumed, in processes, and against every assignment."""

from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lowbit import LIF, Spiking  # noqa: E402
from lowbit.methods import heterogeneous as method  # noqa: E402
from lowbit.models.spikformer import Spikformer, to_integers  # noqa: E402
from lowbit.torch import quantize_  # noqa: E402
from lowbit.torch.spiking import Neurons, SpikingLayer  # noqa: E402

CANDIDATES = (Spiking(2), Spiking(3, "power_of_two"), Spiking(4), Spiking(8))


def model_and_data(n=24):
    torch.manual_seed(0)
    model = Spikformer(width=8, depth=1, heads=2, n_steps=2, halvings=2)
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(n, 1, 16, 16, generator=generator) * 255).round() / 255
    warm(model, x)
    return model, x, torch.arange(n) % 10


def warm(model, x):
    """Its norms see the data and spread it, so that all layers fire."""
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                module.weight.fill_(3.0)
        for _ in range(20):
            model(x)
    return model.eval()


@pytest.mark.parametrize("shortcut", ["spike", "membrane"])
def test_spikformer_folds_and_learns(shortcut):
    torch.manual_seed(0)
    model = Spikformer(2, width=16, depth=2, heads=4, halvings=1, shortcut=shortcut, unit=1.0)
    x = torch.poisson(torch.full((3, 5, 2, 12, 12), 0.7), generator=torch.Generator().manual_seed(0))
    model(x).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values())
    model.eval()
    with torch.no_grad():
        before = model(x)
        after = model.fold_()(x)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert not any(isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)) for m in model.modules())
    report = quantize_(model, Spiking(8))
    assert len(report.quantized) == len(report.layers) == 4 + 12 + 1
    with torch.no_grad():
        assert model(x).shape == (5, 10)


def test_spikformer_arguments():
    with pytest.raises(ValueError, match="shortcut: expected"):
        Spikformer(shortcut="sew")
    with pytest.raises(ValueError, match="width: expected a multiple"):
        Spikformer(width=20, heads=3)
    with pytest.raises(ValueError, match="halvings: expected 0 to 3"):
        Spikformer(halvings=4)


@pytest.mark.parametrize("config", [Spiking(3), Spiking(4, "power_of_two"), Spiking(8)], ids=str)
@pytest.mark.parametrize(("steps", "channels"), [(4, 1), (7, 2)])
def test_integers_have_the_spikes_that_were_trained(config, steps, channels):
    torch.manual_seed(2)
    events = channels == 2
    model = Spikformer(channels, width=16, depth=2, heads=4, n_steps=steps, unit=1.0 if events else 1 / 255)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 28, 28, 1)).astype(np.uint8)
    counts = rng.poisson(0.6, (steps, 6, 28, 28, 2)).astype(np.uint8)
    given = counts if events else pixels
    x = torch.from_numpy(given).float()
    x = x.permute(0, 1, 4, 2, 3) if events else x.permute(0, 3, 1, 2) / 255
    quantize_(warm(model, x), config)
    seen = {}
    for name, module in model.named_modules():
        if hasattr(module, "codes") and module.neuron is not None:
            module.register_forward_hook(lambda _, args, out, name=name: seen.__setitem__(name, out))
    # The first layer's sums are shown to its neurons apart.
    first = model.patch[0]
    fire = first.fire
    first.fire = lambda sums: seen.setdefault("patch.0", fire(sums))
    with torch.no_grad():
        want = model(x)
    integers = to_integers(model, (28, 28))
    run = integers.run(given, record=tuple(f"{name}.neurons" for name in seen))
    assert len(seen) == 4 + 12
    for name, spikes in seen.items():
        spikes = spikes.permute(0, 1, 3, 4, 2) if spikes.dim() == 5 else spikes
        np.testing.assert_array_equal(run.records[f"{name}.neurons"], spikes.numpy(), err_msg=name)
    assert any(spikes.any() for name, spikes in seen.items() if name.startswith("blocks.1"))
    np.testing.assert_allclose(integers.classes(run.output), want.numpy(), rtol=1e-4, atol=1e-4)


def test_what_has_no_integers():
    model = Spikformer(width=8, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"patch\.0 is not"):
        to_integers(model, (28, 28))
    with pytest.raises(ValueError, match="shortcut"):
        to_integers(Spikformer(width=8, depth=1, heads=2, shortcut="membrane"), (28, 28))
    long = Spikformer(width=8, depth=1, heads=2, n_steps=13).eval()
    quantize_(long, Spiking(4))
    with pytest.raises(ValueError, match="up to 12 steps"):
        to_integers(long, (28, 28))


def test_a_search_is_the_same_again_and_changes_nothing():
    model, x, y = model_and_data()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    options = {"weight": 0.1, "candidates": CANDIDATES, "epochs": 2, "batch": 4, "seed": 3}
    one, two = (method.search(model, x, y, **options) for _ in range(2))
    assert one == two
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert method.search(model, x, y, **{**options, "seed": 4}).logits != one.logits
    rules = method.rules_of(one.assignment)
    report = quantize_(method.copy.deepcopy(model), None, rules=rules)
    assert len(report.quantized) == len(rules)


def test_more_weight_never_means_more_bits():
    model, x, y = model_and_data()
    found = [
        method.mean_bits(
            model,
            method.search(model, x, y, weight=w, candidates=CANDIDATES, epochs=4, batch=4, logits_lr=0.3).assignment,
        )
        for w in (0.0, 0.3, 10.0)
    ]
    assert found[0] >= found[1] >= found[2]
    assert found[2] == pytest.approx(method.mean_bits(model, dict.fromkeys(method.spiking_layers(model), Spiking(2))))


_SEARCH = """
import sys
sys.path.insert(0, {here!r})
from test_heterogeneous import CANDIDATES, method, model_and_data
model, x, y = model_and_data()
def told(done, total, what):
    print(done, flush=True)
method.search(model, x, y, weight=0.1, candidates=CANDIDATES, epochs=8, batch=4, journal={journal!r}, progress=told)
"""


def test_a_killed_search_goes_on(tmp_path, request):
    model, x, y = model_and_data()
    options = {"weight": 0.1, "candidates": CANDIDATES, "batch": 4}
    whole = method.search(model, x, y, epochs=8, **options)
    journal = tmp_path / "search.safetensors"
    script = _SEARCH.format(here=str(request.path.parent), journal=str(journal))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if int(line) >= 10:
            child.kill()
            break
    child.wait()
    assert journal.exists()
    calls = []
    again = method.search(
        model, x, y, epochs=8, journal=journal, progress=lambda done, total, what: calls.append(done), **options
    )
    assert 9 < calls[0] < calls[-1] == 24
    assert again == whole
    with pytest.raises(ValueError, match="of another search"):
        method.search(model, x, y, epochs=9, journal=journal, **options)


class Three(torch.nn.Module):
    def __init__(self):
        super().__init__()
        sizes = (40, 24, 24, 4)
        self.layers = torch.nn.Sequential(
            *(
                SpikingLayer(torch.nn.Linear(a, b), torch.nn.BatchNorm1d(b), Neurons(LIF()))
                for a, b in itertools.pairwise(sizes)
            )
        )

    def forward(self, x):
        return 6 * self.layers(x.expand(4, -1, -1)).mean(0)


def test_every_assignment_of_three_layers():
    torch.manual_seed(0)
    model = Three()
    x = (torch.rand(200, 40) < 0.4).float()
    y = (x[:, :20].sum(1) > x[:, 20:].sum(1)).long() + 2 * (x[:, ::2].sum(1) > 8).long()
    method.finetune_(model, x, y, epochs=15, batch=50, lr=0.02)
    model.eval()
    weight, names = 0.02, list(method.spiking_layers(model))
    values = {}
    for configs in itertools.product(CANDIDATES, repeat=3):
        assignment = dict(zip(names, configs, strict=True))
        out = method.evaluate(method.quantized(model, assignment), x, 200)
        values[configs] = float(torch.nn.functional.cross_entropy(out, y)) + weight * method.mean_bits(
            model, assignment
        )
    found = method.search(model, x, y, weight=weight, candidates=CANDIDATES, epochs=15, batch=50, lr=0.0, logits_lr=0.2)
    order = sorted(values.values())
    got = values[tuple(found.assignment.values())]
    # Its gap to the best of 64, in parts of the way to the worst.
    assert (got - order[0]) / (order[-1] - order[0]) < 0.15

    # Without training: of the sums of errors nothing within the budget is better.
    errors = method.measure(model, x, CANDIDATES)
    for budget in (4.0, 5.5, 7.0):
        chosen = method.choose(model, x, budget, candidates=CANDIDATES)
        assert method.mean_bits(model, chosen) <= budget
        total = lambda a: sum(errors[name][CANDIDATES.index(a[name])] for name in names)  # noqa: E731
        best = min(
            total(a)
            for configs in itertools.product(CANDIDATES, repeat=3)
            if method.mean_bits(model, a := dict(zip(names, configs, strict=True))) <= budget
        )
        assert total(chosen) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("metric", ["outputs", "drift"])
def test_errors_are_the_same_in_processes(metric):
    model, x, _ = model_and_data(6)
    here = method.measure(model, x, CANDIDATES, metric=metric)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        there = method.measure(model, x, CANDIDATES, metric=metric, executor=executor)
    assert here == there
    if metric == "drift":
        assert all(errors[0] > errors[-1] for errors in here.values())


def test_two_dask_workers():
    distributed = pytest.importorskip("distributed")
    model, x, _ = model_and_data(6)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = method.choose(model, x, 7.0, candidates=CANDIDATES, executor=client.get_executor())
    assert found == method.choose(model, x, 7.0, candidates=CANDIDATES)


def test_bad_searches():
    model, x, y = model_and_data(4)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4))
    for call in (lambda: method.search(plain, x, y, weight=0.1), lambda: method.choose(plain, x, 4.0)):
        with pytest.raises(ValueError, match="model: expected spiking layers"):
            call()
    with pytest.raises(ValueError, match="metric: expected 'outputs' or 'drift'"):
        method.choose(model, x, 4.0, metric="mse")
    with pytest.raises(ValueError, match="budget: expected at least"):
        method.choose(model, x, 1.0)
