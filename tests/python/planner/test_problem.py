"""Problems: typing, validation with the same messages on both backends, files."""

from __future__ import annotations

import copy
import json
import math
import re
from random import Random

import numpy as np
import pytest

from orbitsplit import Problem
from orbitsplit._planner.problem_parts import ExternalLink, Level, Pins, ProblemNode
from tests.support.random_problems import random_problem


def small() -> dict:
    """Two layers, two nodes, one level."""
    return {
        "layers": ["a", "b"],
        "nodes": [{"name": "n", "memory_bytes": 4}, {"name": "m", "memory_bytes": 4.0}],
        "layer_memory_bytes": [1, 2],
        "layer_time_s": [[1, 2], [3, 4]],
        "cut_bytes": [8],
        "bandwidth_bytes_per_s": [[0, 2], [2, 0]],
        "latency_s": [[0, 1], [1, 0]],
        "levels": [{"name": "raw", "ratio": 1}],
        "loss": [[0.5]],
        "loss_budget": 1,
    }


def changed(path: tuple, value: object) -> dict:
    data = copy.deepcopy(small())
    target = data
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return data


# What a backend refuses: path, value, message.
VALUES = [
    (("layer_memory_bytes", 1), -1, "layer_memory_bytes[1] is -1, must be at least 0"),
    (("layer_time_s", 1, 0), -0.5, "layer_time_s[1][0] is -0.5, must be at least 0"),
    (("layer_time_s", 0, 1), float("nan"), "layer_time_s[0][1] is nan, must be finite"),
    (("layer_time_s", 0, 1), -float("nan"), "layer_time_s[0][1] is nan, must be finite"),
    (("layer_time_s", 0, 1), 1.5e100, "layer_time_s[0][1] is 1.5e+100, must be at most 1e+100"),
    (("layer_earlier_time_s",), [[1, 1], [-0.5, 1]], "layer_earlier_time_s[1][0] is -0.5, must be at least 0"),
    (("stage_overhead_s",), [1, -0.5], "stage_overhead_s[1] is -0.5, must be at least 0"),
    (("stage_overhead_s",), [math.nan, 1], "stage_overhead_s[0] is nan, must be finite"),
    (("stage_overhead_s",), [1, 1e101], "stage_overhead_s[1] is 1e+101, must be at most 1e+100"),
    (("stage_decode_overhead_s",), [math.inf, 1], "stage_decode_overhead_s[0] is inf, must be finite"),
    (("layer_earlier_time_s",), [[1, math.nan], [1, 1]], "layer_earlier_time_s[0][1] is nan, must be finite"),
    (("layer_earlier_time_s",), [[1, math.inf], [1, 1]], "layer_earlier_time_s[0][1] is inf, must be finite"),
    (("layer_earlier_time_s",), [[0, 1e101], [1, 1]], "layer_earlier_time_s[0][1] is 1e+101, must be at most 1e+100"),
    (("cut_bytes", 0), float("inf"), "cut_bytes[0] is inf, must be finite"),
    (("bandwidth_bytes_per_s", 0, 1), -2, "bandwidth_bytes_per_s[0][1] is -2, must be at least 0"),
    (("latency_s", 1, 0), -1e-9, "latency_s[1][0] is -1e-09, must be at least 0"),
    (("levels", 0, "ratio"), 0.5, "levels[0].ratio is 0.5, must be at least 1"),
    (("levels", 0, "encode_s_per_byte"), -1, "levels[0].encode_s_per_byte is -1, must be at least 0"),
    (
        ("levels", 0, "decode_s_per_byte"),
        float("-inf"),
        "levels[0].decode_s_per_byte is -inf, must be finite",
    ),
    (("loss", 0, 0), -0.1, "loss[0][0] is -0.1, must be at least 0"),
    (("loss_budget",), -1, "loss_budget is -1, must be at least 0"),
    (("loss_budget",), float("nan"), "loss_budget is nan, must be finite"),
    (("nodes", 1, "memory_bytes"), -4, "nodes[1].memory_bytes is -4, must be at least 0"),
    (("nodes", 0, "headroom_bytes"), -1, "nodes[0].headroom_bytes is -1, must be at least 0"),
    (
        ("nodes", 0, "headroom_bytes"),
        5,
        "nodes[0].headroom_bytes is 5, must be at most its memory_bytes 4",
    ),
    (("nodes", 1, "name"), "n", 'nodes[1].name is "n", which another node has'),
    (("micro_batches",), 0, "micro_batches is 0, must be 1 to 2147483647"),
    (("new_tokens",), -1, "new_tokens is -1, must be 0 to 2147483647"),
    (("new_tokens",), 8, "layer_decode_time_s is missing, new_tokens is 8"),
    (("groups",), 0, "groups is 0, must be 1 to 2147483647"),
    (("layer_decode_time_s",), [[1, 1], [1, -1]], "layer_decode_time_s[1][1] is -1, must be at least 0"),
    (("cut_decode_bytes",), [-1], "cut_decode_bytes[0] is -1, must be at least 0"),
    (
        ("ingress",),
        {"bytes": -1, "bandwidth_bytes_per_s": [1, 1], "latency_s": [0, 0]},
        "ingress.bytes is -1, must be at least 0",
    ),
    (
        ("egress",),
        {"bytes": 1, "bandwidth_bytes_per_s": [1, -1], "latency_s": [0, 0]},
        "egress.bandwidth_bytes_per_s[1] is -1, must be at least 0",
    ),
    (("pins",), {"required": [0, 2]}, "pins.required[1] is 2, the nodes are 0 to 1"),
    (("pins",), {"forbidden": [-1]}, "pins.forbidden[0] is -1, the nodes are 0 to 1"),
    (("pins",), {"layers": {"2": 0}}, "pins.layers: the layer is 2, the layers are 0 to 1"),
    (("pins",), {"layers": {"1": 5}}, "pins.layers[1] is 5, the nodes are 0 to 1"),
    (
        ("pins",),
        {"required": ["n"], "forbidden": ["n"]},
        "pins.required[0] is node 0, which pins.forbidden names too",
    ),
    (
        ("pins",),
        {"layers": {"a": "m"}, "forbidden": [1]},
        "pins.layers[0] is node 1, which pins.forbidden names too",
    ),
]

# What is refused before a backend sees it.
TYPES = [
    (("nodes",), {}, "nodes is dict, must be a list"),
    (("layers",), "ab", "layers is str, must be a list"),
    (("layers",), ["a", 3], "layers[1] is 3, must be a string"),
    (("nodes", 0), [1], "nodes[0] is list, must be an object with keys"),
    (("nodes", 0, "name"), 7, "nodes[0].name is 7, must be a string"),
    (("nodes", 0, "memory_bytes"), "4 GB", "nodes[0].memory_bytes is '4 GB', must be a number"),
    (("nodes", 0, "half_duplex"), 1, "nodes[0].half_duplex is 1, must be true or false"),
    (("layer_time_s", 0, 0), True, "layer_time_s holds something that is no number"),
    (("layer_time_s", 0, 0), None, "layer_time_s holds something that is no number"),
    (("stage_overhead_s",), [0, "3"], "stage_overhead_s holds something that is no number"),
    (("layer_earlier_time_s",), [[0, 1], [2, "3"]], "layer_earlier_time_s holds something that is no number"),
    (("cut_bytes", 0), "8", "cut_bytes holds something that is no number"),
    (("loss_budget",), "1", "loss_budget is '1', must be a number"),
    (("micro_batches",), 2.0, "micro_batches is 2.0, must be an integer"),
    (("micro_batches",), True, "micro_batches is True, must be an integer"),
    (("latency_occupies_link",), 1, "latency_occupies_link is 1, must be true or false"),
    (("name",), 4, "name is 4, must be a string"),
    (("pins",), [1], "pins is list, must be an object with keys"),
    (("pins",), {"required": [0.5]}, "pins.required[0] is 0.5, must be an integer"),
]

FORMS = [
    (("nodes", 0, "ram"), 1, 'nodes[0] has the unknown key "ram"'),
    (("speed",), 1, 'the problem has the unknown key "speed"'),
    (("layer_time_s",), [[1, 2]], "layer_time_s has shape (1, 2), must be numbers of shape (2, 2)"),
    (("layer_time_s",), [[1, 2], [3]], "layer_time_s has rows of different lengths"),
    (("stage_overhead_s",), [1], "stage_overhead_s has shape (1,), must be numbers of shape (2,)"),
    (("stage_decode_overhead_s",), [[1, 2]], "stage_decode_overhead_s has shape (1, 2), must be numbers of shape (2,)"),
    (("layer_earlier_time_s",), [[1], [2]], "layer_earlier_time_s has shape (2, 1), must be numbers of shape (2, 2)"),
    (("loss",), [0.5], "loss has shape (1,), must be numbers of shape (1, 1)"),
    (("new_tokens",), 2**40, "new_tokens is 1099511627776, must be at most 2147483647"),
    (("order",), "any", 'order is \'any\', must be "fixed" or "free"'),
    (("ingress",), {"bytes": 1}, 'ingress has no key "bandwidth_bytes_per_s"'),
    (
        ("ingress",),
        {"bytes": 1, "bandwidth_bytes_per_s": [1], "latency_s": [0, 0]},
        "ingress.bandwidth_bytes_per_s has shape (1,), must be numbers of shape (2,)",
    ),
    (("pins",), {"nodes": []}, 'pins has the unknown key "nodes"'),
    (("pins",), {"required": ["x"]}, 'pins.required[0] is "x", the name of 0 out of: n, m'),
    (("pins",), {"layers": {"1": 0, "b": 1}}, "pins.layers[1] is given twice"),
]


@pytest.mark.parametrize(("path", "value", "message"), VALUES)
def test_wrong_values_are_refused_alike(backend, path, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Problem.from_dict(changed(path, value))


@pytest.mark.parametrize(("path", "value", "message"), TYPES)
def test_wrong_types_are_refused(path, value, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        Problem.from_dict(changed(path, value))


@pytest.mark.parametrize(("path", "value", "message"), FORMS)
def test_wrong_forms_are_refused(path, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Problem.from_dict(changed(path, value))


@pytest.mark.parametrize("key", [key for key in small() if key != "loss_budget"])
def test_missing_keys_are_named(key):
    data = small()
    del data[key]
    with pytest.raises(ValueError, match=f'no key "{key}"'):
        Problem.from_dict(data)


@pytest.mark.parametrize(("key", "noun"), [("layers", "layer"), ("nodes", "node")])
def test_nothing_to_place_or_nowhere_is_refused(backend, key, noun):
    data = small()
    data[key] = []
    for name in ("layer_memory_bytes", "layer_time_s", "cut_bytes", "loss"):
        data[name] = []
    data["bandwidth_bytes_per_s"] = data["latency_s"] = [] if key == "nodes" else [[0, 1], [1, 0]]
    if key == "nodes":
        data |= {"layer_memory_bytes": [1, 2], "cut_bytes": [1], "loss": [[0]]}
    with pytest.raises(ValueError, match=f"^{key} is empty, needs at least one {noun}$"):
        Problem.from_dict(data)


def test_arrays_are_read_only_float64_copies():
    times = np.array([[1, 2], [3, 4]], dtype=np.float32)
    problem = Problem.from_dict({**small(), "layer_time_s": times})
    times[0, 0] = 9
    assert problem.layer_time_s.dtype == np.float64
    assert problem.layer_time_s[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        problem.layer_time_s[0, 0] = 0


def test_defaults():
    problem = Problem.from_dict({k: v for k, v in small().items() if k != "loss_budget"})
    assert problem.loss_budget is None
    assert Problem.from_dict({**small(), "loss_budget": math.inf}) == problem
    assert (problem.micro_batches, problem.new_tokens, problem.groups) == (1, 0, None)
    assert (problem.order, problem.latency_occupies_link, problem.pins) == ("fixed", False, Pins())
    assert problem.nodes[0] == ProblemNode(name="n", memory_bytes=4, headroom_bytes=0, half_duplex=False)
    assert problem.levels == (Level(name="raw", ratio=1),)


def test_pins_by_name_and_by_index_are_the_same():
    by_name = changed(("pins",), {"layers": {"b": "m"}, "required": ["n"], "forbidden": []})
    by_index = changed(("pins",), {"layers": {"1": 1}, "required": [0]})
    assert Problem.from_dict(by_name) == Problem.from_dict(by_index)
    assert Problem.from_dict(by_name).pins == Pins(layers={1: 1}, required=(0,))


def test_a_problem_can_be_made_from_its_classes():
    made = Problem(
        layers=("a",),
        nodes=(ProblemNode(name="n", memory_bytes=1),),
        layer_memory_bytes=np.ones(1),
        layer_time_s=np.ones((1, 1)),
        cut_bytes=np.zeros(0),
        bandwidth_bytes_per_s=np.zeros((1, 1)),
        latency_s=np.zeros((1, 1)),
        levels=(),
        loss=np.zeros((0, 0)),
        ingress=ExternalLink(bytes=1, bandwidth_bytes_per_s=np.ones(1), latency_s=np.zeros(1)),
    )
    assert Problem.from_dict(made.to_dict()) == made


@pytest.mark.parametrize("seed", range(20))
def test_dict_and_file_round_trip(seed, tmp_path):
    problem = Problem.from_dict({**random_problem(Random(seed)), "name": "p", "expected": {"objective_s": 1}})
    problem.save(tmp_path / "problem.json")
    assert Problem.load(tmp_path / "problem.json") == problem
    assert Problem.from_dict(problem.to_dict()) == problem
    assert problem != Problem.from_dict({**problem.to_dict(), "micro_batches": 77})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON: Expecting value"),
        ("{", "is not JSON: Expecting property name"),
        ('{"layers": [], "layers": []}', 'is not JSON: the key "layers" appears twice'),
        ("[" * 100_000, "is not JSON: maximum recursion depth"),
        ("[]", "the problem is list, must be an object with keys"),
        (json.dumps(small()).replace("0.5", "NaN"), "loss[0][0] is nan, must be finite"),
    ],
)
def test_bad_files_are_refused_with_their_name(text, message, tmp_path):
    path = tmp_path / "problem.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        Problem.load(path)
    assert message in str(caught.value)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Problem.load(tmp_path / "none.json")
