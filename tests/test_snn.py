"""Spiking networks against a run step by step in NumPy, other frameworks' readers of NIR, and golden counts."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle

import lowbit
import lowbit.snn.running as internals
import numpy as np
import pytest
import snn_data
from lowbit import ALIF, IF, LIF, CubaLIF, reference, snn
from lowbit.snn import (
    Add,
    Attention,
    AvgPool2d,
    Conv2d,
    Costs,
    Events,
    Flatten,
    Linear,
    MaxPool2d,
    Mean,
    Network,
    Neurons,
    Potentials,
    Scale,
    Sum,
    SumPool2d,
    Tokens,
    from_nir,
    report,
    to_nir,
)

ONES = ((1, 1), (1, 1))


def rng(seed=0):
    return np.random.default_rng(seed)


def floats(*shape, seed=0):
    return rng([*shape, seed]).normal(0, 0.6, shape).astype(np.float32)


def codes(*shape, seed=0):
    return rng([*shape, seed]).integers(-9, 10, shape).astype(np.int8)


def spikes(*shape, density=0.3, seed=0):
    return (rng([*shape, seed]).random(shape) < density).astype(np.uint8)


# ------------------------------------------------------------------ step by step


def pooled(x, node, of):
    """Windows of one step's (N, H, W, C), each by itself."""
    (kh, kw), (sy, sx) = node.kernel, node.stride
    low = 0 if of is np.sum else -(2**30)
    x = np.pad(x.astype(np.float64), ((0, 0), *node.padding, (0, 0)), constant_values=low)
    rows = range(0, x.shape[1] - kh + 1, sy), range(0, x.shape[2] - kw + 1, sx)
    return np.stack([np.stack([of(x[:, i : i + kh, j : j + kw], axis=(1, 2)) for j in rows[1]], 1) for i in rows[0]], 1)


def weighted(node, x):
    weight = reference.tile_spike_weight(node.weight.untile(), None if node.weight.nbits == 32 else node.weight.nbits)
    if x.dtype == np.float32:  # sums by ascending input, from the bias on
        w, bias = node.weight.untile(), node.bias if node.bias is not None else np.zeros(node.weight.n, np.float32)
        if isinstance(node, Conv2d):
            x = np.pad(x, ((0, 0), *node.padding, (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], (1, 2))
            windows = windows[:, :: node.stride[0], :: node.stride[1]].transpose(0, 1, 2, 4, 5, 3)
            x, w = windows.reshape(*windows.shape[:3], -1), w.reshape(-1, w.shape[-1])
        out = np.broadcast_to(bias, (*x.shape[:-1], len(bias))).copy()
        for k in range(len(w)):
            out = out + x[..., k, None] * w[k]
        return out
    options = {"counts": bool(x.max(initial=0) > 1)}
    if isinstance(node, Conv2d):
        options |= {"stride": node.stride, "padding": node.padding}
        return reference.spike_conv2d(x, weight, node.bias, **options)
    return reference.spike_matmul(x, weight, node.bias, **options)


def one(node, values):
    """A node without memory for one step, values (N, ...)."""
    x = values[0]
    if isinstance(node, (Linear, Conv2d)):
        return weighted(node, x)
    if isinstance(node, SumPool2d):
        return pooled(x, node, np.sum).astype(x.dtype)
    if isinstance(node, AvgPool2d):
        return (pooled(x, node, np.sum) / np.prod(node.kernel)).astype(np.float32)
    if isinstance(node, MaxPool2d):
        return pooled(x, node, np.max).astype(x.dtype)
    if isinstance(node, Flatten):
        return (np.moveaxis(x, -1, 1) if node.channels_first else x).reshape(len(x), -1)
    if isinstance(node, Tokens):
        return x.reshape(len(x), -1, x.shape[-1])
    if isinstance(node, Add):
        return sum(v.astype(np.int32) if v.dtype == np.uint8 else v for v in values).astype(
            np.uint8 if all(v.dtype == np.uint8 for v in values) else values[-1].dtype
        )
    if isinstance(node, Scale):
        return x.astype(np.float32) * node.scale
    if isinstance(node, Attention):
        q, k, v = (a.reshape(*a.shape[:2], node.heads, -1).astype(np.int64) for a in values)
        return np.einsum("nthc,nuhc,nuhd->nthd", q, k, v).reshape(x.shape).astype(np.int32)
    if isinstance(node, (Sum, Mean)):
        axes = tuple(range(1, x.ndim)) if node.axes is None else tuple(a + 1 for a in np.atleast_1d(node.axes))
        total = x.sum(axes, dtype=np.int64).reshape(len(x), *node.shape(x.shape[1:]))
        count = np.prod([x.shape[a] for a in axes])
        return total.astype(np.int32) if isinstance(node, Sum) else total.astype(np.float32) / np.float32(count)
    raise AssertionError(node)


def by_step(network, x):
    """All values of all steps, (T, N, ...): in a cycle neurons give what they gave a step before."""
    state, last, every = {}, {}, {name: [] for name in network.nodes}
    cycles = network.cyclic
    for frame in x:
        now = {"input": frame}
        left = list(network.nodes)
        while left:
            for name in left:
                node, values = network.nodes[name], []
                for source in network.reads[name]:
                    delayed = {name, source} <= cycles and isinstance(network.nodes[source], Neurons)
                    if delayed:
                        values.append(last.get(source, np.zeros((frame.shape[0], *network.shapes[source]), np.uint8)))
                    elif source in now:
                        values.append(now[source])
                if len(values) < len(network.reads[name]):
                    continue
                if isinstance(node, Neurons):
                    given = values[0].astype(np.float32) if values[0].dtype == np.uint8 else values[0]
                    ran = reference.simulate(given[None], node.neuron, state.get(name), return_v=True)
                    state[name] = ran.state
                    now[name] = (ran.v_seq if isinstance(node, Potentials) else ran.spike_seq)[0].astype(
                        given.dtype if isinstance(node, Potentials) else np.uint8
                    )
                else:
                    now[name] = one(node, values)
                left.remove(name)
                break
            else:
                raise AssertionError(left)
        last = now
        for name, values in every.items():
            values.append(now[name])
    return {name: np.stack(values) for name, values in every.items()}


# ------------------------------------------------------------------ networks


def convolutional():
    return Network.sequential(
        (9, 8, 2),
        ("conv", Conv2d(floats(3, 3, 2, 8), floats(8), stride=(2, 1), padding=((1, 1), (1, 0)))),
        ("cells", Neurons(LIF(tau=2.0, reset="soft", v_threshold=np.linspace(0.2, 0.8, 8)))),
        ("pool", SumPool2d((2, 3))),
        ("conv2", Conv2d(floats(2, 2, 8, 5), padding=ONES)),
        ("cells2", Neurons(IF(v_threshold=0.7, strict=True))),
        ("flat", Flatten(channels_first=True)),
        ("linear", Linear(floats(45, 4), floats(4))),
        ("out", Neurons(ALIF(decay_input=False, v_threshold=0.5))),
    )


def recurrent():
    return Network(
        {
            "in": Linear(floats(5, 7)),
            "sum": Add(),
            "a": Neurons(CubaLIF(tau_syn=3.0, tau=4.0, v_threshold=0.3, w_in=1.5)),
            "back": Linear(floats(7, 7), floats(7)),
            "on": Linear(floats(7, 6)),
            "sum2": Add(),
            "b": Neurons(IF(v_threshold=0.4, refractory=1)),
            "self": Linear(floats(6, 6)),
            "far": Linear(floats(6, 7)),
            "out": Linear(floats(6, 3)),
            "mean": Mean(),
        },
        {
            "in": "input", "sum": ("in", "back", "far"), "a": "sum", "back": "a", "on": "a", "sum2": ("on", "self"),
            "b": "sum2", "self": "b", "far": "b", "out": "b", "mean": "b",
        },
        shape=(5,),
    )  # fmt: skip


def of_numbers():
    return Network.sequential(
        (7, 7, 3),
        ("conv", Conv2d(floats(3, 3, 3, 8), floats(8), stride=(2, 2), padding=ONES)),
        ("cells", Neurons(LIF())),
        ("mean", AvgPool2d((2, 2), (1, 1), ONES)),
        ("scale", Scale(np.arange(8) / 4)),
        ("flat", Flatten()),
        ("linear", Linear(floats(200, 4))),
        ("v", Potentials(LIF(reset="none"))),
    )


MADE = {"convolutional": convolutional, "recurrent": recurrent, "numbers": of_numbers}


def inputs(name, network, steps=11, streams=3):
    shape = (steps, streams, *network.shape)
    return floats(*shape) if name == "numbers" else spikes(*shape)


@pytest.mark.parametrize("name", MADE)
def test_is_the_run_step_by_step(name, monkeypatch):
    network = MADE[name]()
    x = inputs(name, network)
    want = by_step(network, x)
    for piece in (internals.PIECE, 1, 3000):
        monkeypatch.setattr(internals, "PIECE", piece)
        run = network.run(x, record=list(network.nodes))
        for node, values in want.items():
            np.testing.assert_array_equal(run.records[node], values, err_msg=f"{node}, pieces of {piece}")
        for node, counts in run.spikes.items():
            np.testing.assert_array_equal(counts, want[node].reshape(11, 3, -1).sum((0, 2)), err_msg=node)
        for node, count in run.operations.items():
            layer, source = network.nodes[node], network.reads[node][0]
            read = x if source == "input" else want[source]
            options = {"stride": layer.stride, "padding": layer.padding} if isinstance(layer, Conv2d) else {}
            dense = read.dtype == np.float32
            told = np.ones(read.shape, np.uint8) if dense else (read != 0).view(np.uint8)
            assert count == lowbit.spike_operations(told, layer.weight, **options), node
    assert any(counts.sum() for counts in run.spikes.values())


@pytest.mark.parametrize("name", MADE)
def test_a_stream_can_be_cut_anywhere(name):
    network = MADE[name]()
    x = inputs(name, network)
    whole = network.run(x, return_state=True)
    for cut in range(1, len(x)):
        head = network.run(x[:cut], return_state=True)
        tail = network.run(x[cut:], state=head.state, return_state=True)
        for out, values in whole.outputs.items():
            np.testing.assert_array_equal(np.concatenate([head.outputs[out], tail.outputs[out]]), values)
        for layer in whole.spikes:
            np.testing.assert_array_equal(head.spikes[layer] + tail.spikes[layer], whole.spikes[layer])
            np.testing.assert_array_equal(tail.state.neurons[layer].v, whole.state.neurons[layer].v)
        assert {n: head.operations[n] + tail.operations[n] for n in whole.operations} == whole.operations


def integers():
    w = {x: Linear(codes(8, 8, seed=i)) for i, x in enumerate("qkv")}
    cells = {f"{x}s": Neurons(LIF(tau=2.0, decay_input=False, v_threshold=6)) for x in "qkv"}
    return Network(
        {
            "conv": Conv2d(codes(3, 3, 1, 8), np.arange(8, dtype=np.int32), padding=ONES),
            "a": Neurons(IF(v_threshold=14, reset="soft", fraction=1)),
            "max": MaxPool2d((2, 2)),
            "conv2": Conv2d(lowbit.tile_spike_weight(codes(3, 3, 8, 8).clip(-8, 7), 4), padding=ONES),
            "b": Neurons(LIF(tau=2.0, decay_input=False, v_threshold=12)),
            "both": Add(),
            "tokens": Tokens(),
            **w,
            **cells,
            "attention": Attention(2),
            "mix": Neurons(IF(v_threshold=9)),
            "readout": Linear(codes(8, 3)),
            "total": Sum(0),
            "v_out": Potentials(LIF(tau=4.0, decay_input=False, reset="none", v_threshold=1)),
        },
        {"conv": "input", "a": "conv", "max": "a", "conv2": "max", "b": "conv2", "both": ("max", "b")}
        | {"tokens": "both"}
        | dict.fromkeys("qkv", "tokens")
        | {f"{x}s": x for x in "qkv"}
        | {"attention": ("qs", "ks", "vs"), "mix": "attention", "readout": "mix", "total": "readout", "v_out": "total"},
        shape=(8, 8, 1),
    )


def test_an_integer_network_with_attention():
    network = integers()
    for x in (spikes(6, 2, 8, 8, 1), rng().integers(0, 256, (6, 2, 8, 8, 1)).astype(np.uint8)):
        run, want = network.run(x, record=list(network.nodes)), by_step(network, x)
        for name, values in want.items():
            np.testing.assert_array_equal(run.records[name], values, err_msg=name)
        assert run.output.dtype == np.int32
        assert run.spikes["mix"].sum()


def same_runs(run, other):
    assert run.operations == other.operations
    assert list(run.spikes) == list(other.spikes)
    for name, values in (run.outputs | run.spikes).items():
        expected = (other.outputs | other.spikes)[name]
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected, err_msg=name)
    for name, layer in (run.state.neurons if run.state else {}).items():
        for field in ("v", "i", "a", "left"):
            np.testing.assert_array_equal(getattr(layer, field), getattr(other.state.neurons[name], field))


@pytest.fixture
def threads(request):
    before = lowbit.get_num_threads()
    lowbit.set_num_threads(request.param)
    yield request.param
    lowbit.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("make", [convolutional, integers])
def test_what_the_core_runs_whole_is_the_run_node_by_node(make, threads, monkeypatch):
    network, alone = make(), make()
    monkeypatch.setattr(internals.Plan, "_core", lambda *_: None)
    assert not alone.core
    monkeypatch.undo()
    assert network.core
    inputs = [spikes(40, 3, *network.shape), rng().integers(0, 256, (40, 3, *network.shape)).astype(np.uint8)]
    for x in inputs:
        monkeypatch.setattr(internals.Plan, "_core", lambda *_: None)
        want, still = alone.run(x, return_state=True), alone.run(x[0], n_steps=40)
        monkeypatch.undo()
        for frames in (internals.FRAMES, 1, 7 * x[0, 0].size):
            monkeypatch.setattr(internals, "FRAMES", frames)
            same_runs(network.run(x, return_state=True), want)
            same_runs(network.run(x), want)
            same_runs(network.run(x[0], n_steps=40), still)


@pytest.mark.parametrize("name", ["convolutional", "integers"])
def test_a_state_of_the_core_is_one_of_the_nodes(name, monkeypatch):
    network, alone = (globals()[name]() for _ in range(2))
    x = spikes(9, 2, *network.shape)
    first = network.run(x[:4], return_state=True)
    rest = network.run(x[4:], state=first.state, return_state=True)
    monkeypatch.setattr(internals.Plan, "_core", lambda *_: None)
    same_runs(rest, alone.run(x[4:], state=first.state, return_state=True))
    same_runs(first, alone.run(x[:4], return_state=True))


@pytest.mark.parametrize("most", [1, 3])
def test_events_in_the_core_are_frames(most, monkeypatch):
    network = convolutional()
    draw = rng(5)
    t, where = draw.integers(0, 20, 300), [draw.integers(0, n, 300) for n in network.shape]
    stream = draw.integers(0, 3, 300)
    if most == 1:
        _, kept = np.unique(np.stack([t, stream, *where]), axis=1, return_index=True)
        t, stream, where = t[kept], stream[kept], [axis[kept] for axis in where]
    events = Events(t, where, network.shape, stream, n_steps=22, n_streams=4)
    frames = np.zeros((22, 4, *network.shape), np.uint8)
    np.add.at(frames, (t, stream, *where), 1)
    assert (events.most > 1) == (most > 1)
    for steps in (22, 30):
        shown = np.concatenate([frames, np.zeros((steps - 22, *frames.shape[1:]), np.uint8)])
        want = network.run(shown, return_state=True)
        for size in (internals.FRAMES, 1, 7 * frames[0, 0].size):
            monkeypatch.setattr(internals, "FRAMES", size)
            same_runs(network.run(events, n_steps=steps, return_state=True), want)


def test_which_networks_the_core_runs_whole():
    assert [make().core for make in (convolutional, integers, recurrent, of_numbers)] == [True, True, False, False]


def test_a_network_that_ran_can_be_copied():
    network, x = integers(), spikes(3, 2, 8, 8, 1)
    want = network.run(x)
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        same_runs(other.run(x), want)


def test_counts_past_a_byte_are_refused_by_name():
    ones = np.full((1, 1, 2, 2, 1), 200, np.uint8)
    for node, name in ((SumPool2d((2, 2)), "SumPool2d"), (Add(), "Add")):
        reads = ("input", "input") if name == "Add" else "input"
        network = Network({"x": node}, {"x": reads}, shape=(2, 2, 1))
        with pytest.raises(ValueError, match=rf"node 'x' \({name}\): expected counts of at most 255 spikes, got"):
            network.run(ones)
        assert network.run(ones // 4).output.max() in (100, 200)


def test_a_state_that_is_no_such_neurons_is_refused():
    network = integers()
    x = spikes(2, 1, 8, 8, 1)
    state = network.run(x, return_state=True).state
    wrong = dict(state.neurons) | {"a": lowbit.NeuronState(state.neurons["a"].v.astype(np.float32))}
    with pytest.raises(TypeError, match=r"state\.v"):
        network.run(x, state=internals.State(wrong, {}))


def test_a_still_image_is_shown_at_every_step():
    network = of_numbers()
    image = floats(2, 7, 7, 3)
    whole = network.run(np.repeat(image[None], 5, 0))
    shown = network.run(image, n_steps=5)
    np.testing.assert_array_equal(shown.output, whole.output)
    assert shown.operations == whole.operations


# ------------------------------------------------------------------ events


def test_events_are_frames():
    draw = rng(3)
    t, stream = draw.integers(0, 20, 500), draw.integers(0, 3, 500)
    y, x, p = draw.integers(0, 9, 500), draw.integers(0, 8, 500), draw.integers(0, 2, 500)
    frames = np.zeros((20, 3, 9, 8, 2), np.uint8)
    np.add.at(frames, (t, stream, y, x, p), 1)
    assert frames.max() > 1
    events = Events(t, (y, x, p), (9, 8, 2), stream, n_steps=20)
    np.testing.assert_array_equal(events.frames(0, 20, 0, 3), frames)
    np.testing.assert_array_equal(events.frames(7, 9, 1, 2), frames[7:9, 1:2])
    network = convolutional()
    a, b = network.run(events, n_steps=23), network.run(np.concatenate([frames, np.zeros_like(frames[:3])]))
    np.testing.assert_array_equal(a.output, b.output)
    assert a.operations == b.operations


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Events([0, -1], ([0, 0],), (2,)), "t: expected 0 to"),
        (lambda: Events([0, 1], ([0, 2],), (2,)), r"index\[0\]: expected 0 to 1, got 2"),
        (lambda: Events([0, 1], ([0],), (2,)), r"index\[0\]: expected shape \(2,\)"),
        (lambda: Events([0, 1], ([0, 1],), (2, 2)), "index: expected 2 arrays"),
        (lambda: Events([0, 5], ([0, 1],), (2,), n_steps=5), "t: expected 0 to 4, got 5"),
        (lambda: Events(np.zeros(300, np.int64), (np.zeros(300, np.int64),), (2,)), "at most 255 events"),
        (lambda: convolutional().run(Events([0], ([0],), (2,))), "expected events of"),
        (lambda: recurrent().run(Events([4], ([0],), (5,)), n_steps=3), "n_steps: expected more than"),
    ],
)
def test_bad_events(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# ------------------------------------------------------------------ what does not fit


def chain(**reads):
    nodes = {"w": Linear(floats(3, 3)), "n": Neurons(IF()), "s": Add()}
    return Network({name: nodes[name] for name in reads}, reads, shape=(3,))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: chain(w="x"), "there is no node 'x'"),
        (lambda: chain(w=("input", "input")), "one name for each of"),
        (lambda: chain(s=()), "at least one name"),
        (lambda: chain(s=("input", "w"), w="s"), "outputs: every node is read"),
        (lambda: Network({"s": Add(), "w": Linear(floats(3, 3))}, {"s": ("input", "w"), "w": "s"}, shape=(3,), outputs="w"),
         "a cycle without neurons: s -> w|a cycle without neurons: w -> s"),
        (lambda: Network({"input": Add()}, {"input": "input"}, shape=(3,)), "'input' is the network's input"),
        (lambda: Network({"n": Neurons(IF())}, {"n": "input", "m": "n"}, shape=(3,)), "reads: there is no node 'm'"),
        (lambda: Network({"n": Neurons(IF())}, {"n": "input"}, shape=(3,), outputs="m"), "outputs: there is no node"),
        (lambda: Network.sequential((4,), Linear(floats(3, 3))), r"node 'linear0' \(Linear\): expected \(..., 3\), got \(4,\)"),
        (lambda: Network.sequential((4, 4), Tokens()), r"expected \(H, W, C\)"),
        (lambda: Network.sequential((2, 2, 1), SumPool2d((3, 3))), "that holds the kernel"),
        (lambda: Network.sequential((4,), Neurons(IF(v_threshold=np.ones(3)))), "v_threshold: expected one number"),
        (lambda: Network.sequential((4,), Linear(codes(4, 3)), Linear(codes(3, 3))).run(spikes(1, 1, 4)),
         "a weight of 8 bits takes spikes or counts, not sums"),
        (lambda: Network.sequential((4, 4, 1), SumPool2d((4, 4))).run(np.full((1, 1, 4, 4, 1), 200, np.uint8)),
         "counts of at most 255 spikes, got 3200"),
        (lambda: chain(n="input").run(np.zeros((0, 1, 3), np.uint8)), "at least one step"),
        (lambda: chain(n="input").run(np.zeros((1, 3), np.uint8)), "n_steps shows one input"),
        (lambda: chain(n="input").run(np.zeros((2, 1, 3), np.uint8), n_steps=3), "n_steps: expected 2"),
        (lambda: chain(n="input").run(np.full((1, 1, 3), np.nan, np.float32)), "finite"),
        (lambda: chain(n="input").run(np.zeros((1, 1, 3), np.uint8), record="x"), "record: there is no node"),
        (lambda: chain(n="input").run(spikes(1, 1, 3), state=recurrent().run(spikes(1, 1, 5), return_state=True).state),
         "state: expected that of n"),
        (lambda: chain(n="input").run(spikes(1, 2, 3), state=chain(n="input").run(spikes(1, 1, 3), return_state=True).state),
         r"state: expected \(2, 3\)"),
        (lambda: Conv2d(floats(3, 3)), "weight: expected shape"),
        (lambda: Linear(floats(3, 3), floats(2)), "bias: expected shape"),
        (lambda: Costs(add_int8=-1), "add_int8: expected 0 or more"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_is_no_node_is_refused():
    with pytest.raises(TypeError, match="nodes: expected nodes"):
        Network({"n": IF()}, {"n": "input"}, shape=(3,))
    with pytest.raises(TypeError, match=r"x: expected"):
        chain(n="input").run(np.zeros((1, 1, 3), complex))


def test_progress_counts_steps():
    seen = []
    recurrent().run(spikes(11, 3, 5), progress=lambda now, of: seen.append((now, of)))
    assert seen[-1] == (33, 33)


# ------------------------------------------------------------------ few spikes are scattered


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_sums_of_floats_are_in_one_order_however_many(density, counts):
    x = spikes(4, 7, 9, 5, density=density)
    x = x * rng().integers(1, 256, x.shape).astype(np.uint8) if counts else x
    for stride, padding in (((1, 1), ONES), ((2, 3), ((0, 2), (1, 0)))):
        for outputs in (3, 16, 70):
            w, bias = floats(3, 2, 5, outputs), floats(outputs)
            options = {"stride": stride, "padding": padding, "counts": counts}
            want = reference.spike_conv2d(x, reference.tile_spike_weight(w), bias, **options)
            np.testing.assert_array_equal(lowbit.spike_conv2d(x, lowbit.tile_spike_weight(w), bias, **options), want)


# ------------------------------------------------------------------ NIR


def test_there_and_back():
    pytest.importorskip("nir")
    network = Network.sequential(
        (9, 8, 2),
        ("conv", Conv2d(floats(3, 3, 2, 4), floats(4), stride=(2, 1), padding=ONES)),
        ("a", Neurons(LIF(tau=3.0, v_threshold=0.3, v_leak=0.1, strict=True))),
        ("pool", SumPool2d((2, 2))),
        ("scale", Scale(np.float32(0.5))),
        ("b", Neurons(IF(v_threshold=0.8, v_reset=-0.1, strict=True))),
        ("flat", Flatten()),
        ("linear", Linear(floats(32, 6), floats(6))),
        ("c", Neurons(CubaLIF(tau=2.0, tau_syn=4.0, decay_input=False, w_in=np.arange(1, 7) / 4, strict=True))),
        ("last", Linear(floats(6, 3))),
        ("v", Potentials(LIF(tau=2.0, reset="none"))),
    )
    x = spikes(12, 2, 9, 8, 2)
    want = network.run(x)
    for dt in (1.0, 1e-4):
        again = from_nir(to_nir(network, dt=dt), dt=dt)
        assert list(again.nodes) == list(network.nodes)
        np.testing.assert_array_equal(again.run(x).output, want.output)


def test_there_and_back_with_a_cycle(tmp_path):
    nir = pytest.importorskip("nir")
    made = recurrent()
    nodes = dict(made.nodes) | {"b": Neurons(IF(v_threshold=0.4))}
    del nodes["mean"]
    network = Network(nodes, {n: r for n, r in made.reads.items() if n != "mean"}, shape=(5,))
    nir.write(tmp_path / "net.nir", to_nir(network, dt=1e-3))
    again = from_nir(str(tmp_path / "net.nir"), dt=1e-3, strict=False)
    x = spikes(20, 2, 5)
    a, b = network.run(x), again.run(x)
    np.testing.assert_allclose(a.output, b.output, atol=1e-5)
    assert {n: s.tolist() for n, s in a.spikes.items()} == {n: s.tolist() for n, s in b.spikes.items()}


def lif_graph(nir, kind="LIF", size=20, dt=1e-4, **options):
    one = np.ones(size)
    if kind == "LIF":
        neuron = nir.LIF(tau=5 * dt * one, r=5 * one, v_leak=0 * one, v_threshold=one)
    elif kind == "decaying LIF":
        neuron = nir.LIF(tau=5 * dt * one, r=one, v_leak=0 * one, v_threshold=0.3 * one)
    elif kind == "IF":
        neuron = nir.IF(r=one / dt, v_threshold=one)
    else:
        neuron = nir.CubaLIF(
            tau_syn=4 * dt * one, tau_mem=5 * dt * one, r=5 * one, v_leak=0 * one, v_threshold=one, w_in=4 * one
        )
    return nir.NIRGraph.from_list(nir.Affine(floats(size, 9).astype(np.float32), floats(size)), neuron)


@pytest.mark.parametrize("kind", ["LIF", "CubaLIF"])
def test_snntorch_reads_the_same(kind):
    nir, torch = pytest.importorskip("nir"), pytest.importorskip("torch")
    snntorch = pytest.importorskip("snntorch.import_nir")
    x = spikes(30, 4, 9)
    ours = from_nir(lif_graph(nir, kind), dt=1e-4).run(x).output
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        model = snntorch.import_from_nir(lif_graph(nir, kind))
        state, theirs = None, []
        for frame in torch.from_numpy(x.astype(np.float32)):
            out, state = model(frame, state)
            theirs.append(out)
    np.testing.assert_array_equal(ours, torch.stack(theirs).numpy())
    assert 0 < ours.mean() < 1


@pytest.mark.parametrize("kind", ["LIF", "decaying LIF", "CubaLIF", "IF"])
def test_spikingjelly_reads_the_same(kind):
    nir, torch = pytest.importorskip("nir"), pytest.importorskip("torch")
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    x = spikes(30, 4, 9)
    ours = from_nir(lif_graph(nir, kind), dt=1e-4, strict=False).run(x).output
    with torch.no_grad():
        model = exchange.import_from_nir(lif_graph(nir, kind), dt=1e-4)
        state, theirs = None, []
        for frame in torch.from_numpy(x.astype(np.float32)):
            out, state = model(frame, state)
            theirs.append(out)
    np.testing.assert_array_equal(ours, torch.stack(theirs).numpy())
    assert 0 < ours.mean() < 1


def test_norse_reads_the_same():
    nir, torch = pytest.importorskip("nir"), pytest.importorskip("torch")
    norse = pytest.importorskip("norse.torch")
    x = spikes(30, 4, 9)
    graph = lif_graph(nir, "decaying LIF")
    ours = from_nir(graph, dt=1e-4).run(x).output
    with torch.no_grad():
        model, state, theirs = norse.from_nir(graph, dt=1e-4), None, []
        for frame in torch.from_numpy(x.astype(np.float32)):
            out, state = model(frame, state)
            theirs.append(out)
    np.testing.assert_array_equal(ours, torch.stack(theirs).numpy())
    assert 0 < ours.mean() < 1


def graph_of(nir, nodes, edges, shape=(3,), out=(3,)):
    nodes = {"input": nir.Input(np.array(shape)), **nodes, "output": nir.Output(np.array(out))}
    return nir.NIRGraph(nodes=nodes, edges=edges, type_check=False)


def bad_graphs(nir):
    w, one = nir.Linear(np.ones((3, 3), np.float32)), np.ones(3)
    chain = [("input", "a"), ("a", "output")]
    conv = {"input_shape": None, "weight": np.ones((1, 1, 3, 3), np.float32), "bias": np.zeros(1, np.float32)}
    conv |= {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    yield graph_of(nir, {"a": nir.Delay(one)}, chain), r"node 'a' \(Delay\): there is no such node here"
    yield graph_of(nir, {"a": nir.Conv1d(3, np.ones((1, 1, 3)), 1, 0, 1, 1, np.zeros(1))}, chain), "Conv1d"
    yield graph_of(nir, {"a": nir.IF(np.ones(4), np.ones(4))}, chain), r"node 'a' \(IF\): expected \(4,\), got \(3,\)"
    yield graph_of(nir, {"a": w}, [*chain, ("b", "a")]), "there is no node 'b'"
    yield graph_of(nir, {"a": w, "b": w}, chain), "node 'b' .*follows from nothing"
    yield (
        graph_of(nir, {"a": w, "b": w}, [*chain[:1], ("a", "b"), ("b", "a"), ("b", "output")]),
        "a cycle without neurons",
    )
    yield graph_of(nir, {"a": nir.Conv2d(**conv)}, chain), r"expected \(C, H, W\)"
    yield graph_of(nir, {"a": nir.Conv2d(**conv | {"dilation": 2})}, chain, (1, 9, 9), (1, 5, 5)), "dilation 1"
    yield graph_of(nir, {"a": nir.LIF(0.5 * one, one, one, one)}, chain), "tau: expected at least dt"
    yield graph_of(nir, {"a": nir.LIF(0 * one, one, one, one)}, chain), "tau: expected at least dt"
    yield graph_of(nir, {"a": nir.LIF(one, one, one, np.nan * one)}, chain), "v_threshold"
    yield graph_of(nir, {"a": w}, chain, None), "expected a shape, got None"
    yield graph_of(nir, {"a": w}, chain, (3,), (4,)), r"node 'output' .*expected \(4,\)"


def test_bad_graphs():
    nir = pytest.importorskip("nir")
    for graph, words in bad_graphs(nir):
        with pytest.raises(ValueError, match=words):
            from_nir(graph)
    for dt in (0, -1, np.nan):
        with pytest.raises(ValueError, match="dt: expected more than 0"):
            from_nir(graph, dt=dt)
    with pytest.raises(TypeError, match=r"expected a nir\.NIRGraph"):
        from_nir(3)


def test_bad_files(tmp_path):
    nir = pytest.importorskip("nir")
    path = tmp_path / "net.nir"
    nir.write(path, lif_graph(nir))
    whole = path.read_bytes()
    for cut in (0, 4, 8, 100, 2000, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(lowbit.FileFormatError):
            from_nir(path)
    with pytest.raises(FileNotFoundError):
        from_nir(tmp_path / "none.nir")


def test_what_nir_has_not():
    pytest.importorskip("nir")
    for node in (MaxPool2d((1, 1)), Neurons(ALIF()), Neurons(IF(refractory=1)), Neurons(IF(reset="none")), Mean()):
        with pytest.raises(ValueError, match="node 'a'"):
            to_nir(Network.sequential((4, 4, 2), ("a", node)))


# ------------------------------------------------------------------ the stored networks


@pytest.fixture
def data():
    pytest.importorskip("nir")
    path = snn_data.folder()
    if path is None:
        pytest.skip("no data: LOWBIT_DATA=FOLDER, with snn_nir in it")
    return path


def test_nmnist_golden_counts(data):
    network = from_nir(snn_data.graph(data, "snn_cnn_nmnist"), reset="soft", strict=False)
    events, golden = snn_data.streams(data)
    run = network.run(events)
    out = run.output.sum(0, dtype=np.int64)
    np.testing.assert_array_equal(out, golden["out_spikes"])
    counts = np.stack([run.spikes[name] for name in snn_data.SPIKING], 1)
    np.testing.assert_array_equal(counts, golden["layer_spikes"])
    assert round(100 * (out.argmax(1) == golden["label"]).mean(), 2) == 97.33


def test_braille_is_its_equations_step_by_step(data):
    graph = snn_data.graph(data, "srnn_braille")
    network = from_nir(graph, dt=1e-4)
    x = spikes(256, 8, 12, density=0.2, seed=7)
    run = network.run(x, record=["lif1.lif"])
    f32, parameters = np.float32, {n: vars(node) for n, node in graph.nodes.items()}

    def affine(name, x):
        w, total = parameters[name]["weight"].astype(f32), parameters[name]["bias"].astype(f32) + np.zeros((8, 1), f32)
        for k in np.arange(w.shape[1]):
            total = total + x[:, k, None].astype(f32) * w[:, k]
        return total

    def neurons(name, x, memory):
        p = {key: np.asarray(parameters[name][key], np.float64) for key in ("tau_syn", "tau_mem", "r", "w_in")}
        gain = p["w_in"] * p["r"] * 1e-8 / (p["tau_syn"] * p["tau_mem"])
        np.testing.assert_allclose(gain, 1, atol=1e-6)
        memory["i"] = (1 - 1e-4 / p["tau_syn"]).astype(f32) * memory["i"] + x
        h = (1 - 1e-4 / p["tau_mem"]).astype(f32) * memory["v"] + memory["i"]
        z = h > f32(1)
        memory["v"] = np.where(z, f32(0), h)
        return z

    first, second = ({"i": np.zeros((8, n), f32), "v": np.zeros((8, n), f32)} for n in (38, 7))
    z, hidden, out = np.zeros((8, 38), bool), [], []
    for frame in x:
        z = neurons("lif1.lif", affine("fc1", frame) + affine("lif1.w_rec", z), first)
        hidden.append(z)
        out.append(neurons("lif2", affine("fc2", z), second))
    np.testing.assert_array_equal(run.records["lif1.lif"], np.stack(hidden))
    np.testing.assert_array_equal(run.output, np.stack(out))
    np.testing.assert_array_equal(run.spikes["lif1.lif"], np.stack(hidden).sum((0, 2)))
    assert run.output.sum()


# ------------------------------------------------------------------ reports and pictures


def test_a_report_adds_up():
    network = convolutional()
    run = network.run(spikes(11, 3, 9, 8, 2))
    told = report(network, run)
    assert told.energy == pytest.approx(sum(layer.energy for layer in told.layers))
    assert told.spikes == sum(int(n.sum()) for n in run.spikes.values())
    assert told.operations == sum(run.operations.values())
    assert told.parameters == network.parameters
    rows = {layer.name: layer for layer in told.layers}
    assert rows["conv"].energy == pytest.approx(0.9 * run.operations["conv"])
    assert rows["conv2"].energy == pytest.approx(4.6 * run.operations["conv2"])  # counts
    assert rows["cells2"].energy == pytest.approx(0.9 * rows["cells2"].neurons * 33)
    loaded = json.loads(told.to_json())
    assert loaded["total"]["operations"] == told.operations
    assert [layer["name"] for layer in loaded["layers"]] == list(rows)
    text = str(told)
    assert all(name in text for name in rows)
    assert "memory is not counted" in text
    free = report(network, run, Costs(add_float32=0, multiply_float32=0))
    assert free.energy == 0
    read = report(network, run, Costs(weight_read=5, neuron_updates=False))
    assert read.energy == pytest.approx(
        5.9 * (told.operations - run.operations["conv2"]) + 9.6 * run.operations["conv2"]
    )


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    network = convolutional()
    run = network.run(spikes(11, 3, 9, 8, 2), record=["cells", "out"])
    for draw in (snn.draw_raster, snn.draw_rates):
        for name in ("a.png", "a.svg"):
            path = draw(run.records, tmp_path / name, stream=1, title="spikes")
            assert path.stat().st_size > 1000
        with pytest.raises(ValueError, match="records: expected at least one"):
            draw({}, tmp_path / "b.png")
        with pytest.raises(ValueError, match="path: expected"):
            draw(run.records, tmp_path / "b.gif")
        with pytest.raises(ValueError, match="with a stream 3"):
            draw(run.records, tmp_path / "b.png", stream=3)
