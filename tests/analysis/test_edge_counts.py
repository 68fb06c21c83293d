"""What a synapse counts on each kind of edge: three inputs, two outputs, one weight that is 0.

Counted by hand in docs/counting.md, whose table these tests read; by PyTorch, by the event runtime
and by `soul-deploy energy` from a file.
"""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from places import ROOT

from soul_deploy import ir
from soul_deploy.analysis.synops import count_model
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import build_event_network
from soul_deploy.model.file import save
from soul_deploy.model.model import Model
from soul_deploy.runtime.engine.network import Network
from soul_deploy.runtime.ops.counted_run import count_run
from soul_deploy.runtime.ops.counters import LayerCounts

WEIGHT = np.array([[0.5, 1.0, 0.0], [0.25, -1.0, 2.0]], np.float32)
NORM_1 = (("norm", 1.0),)
UP_TO_8 = ir.NeuronSpec("intlif", tau=1.0, settings=NORM_1)
SIGNED = ir.NeuronSpec("tlif", settings=NORM_1)
SENDERS: dict[str, tuple[list[float], tuple[ir.Node, ...]]] = {
    "spike": ([0, 2, 2], (ir.Population("s", ("input",), ir.NeuronSpec("if")),)),
    "graded": ([0, 2, 1], (ir.Population("s", ("input",), UP_TO_8),)),
    "signed": ([0, 1, -1], (ir.Population("s", ("input",), SIGNED),)),
    "graded and signed": (
        [0, 1, -1],
        (
            ir.Population("a", ("input",), UP_TO_8),
            ir.Population("b", ("input",), SIGNED),
            ir.Merge("s", ("a", "b"), "add"),
        ),
    ),
    "analog": ([0, 2, -1], ()),
}
"""The input of one step, and what makes of it values of this kind."""


def table() -> dict[str, tuple[list[int], dict[str, int]]]:
    """By kind of edge: the values that arrive, and the counts, as docs/counting.md has them."""
    text = (ROOT / "docs" / "counting.md").read_text()
    lines = text[text.index("| edge | values |") :].split("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines)
    return {
        row[0]: ([*map(int, row[1].split())], dict(zip(head[2:], map(int, row[2:]), strict=True)))
        for row in rows
    }


def network(kind: str) -> Model:
    _, senders = SENDERS[kind]
    last = senders[-1].name if senders else "input"
    nodes = (
        ir.Input("input", (), (3,)),
        *senders,
        ir.Linear("p", (last,), False, None, 3, 2),
        ir.Population("q", ("p",), ir.NeuronSpec("if")),
        ir.Readout("head", ("q",), 2),
    )
    state = {
        "p.weight": WEIGHT,
        "head.weight": np.ones((2, 2), np.float32),
        "head.bias": np.zeros(2, np.float32),
    }
    return Model(ir.SpikingGraph(nodes, time_steps=1), state)


def counted(counts: LayerCounts, names: dict[str, int]) -> dict[str, int]:
    assert names.keys() <= {field.name for field in fields(LayerCounts)}
    return {name: getattr(counts, name) for name in names}


@pytest.mark.parametrize("kind", SENDERS)
def test_a_synapse_counts_by_hand(kind: str) -> None:
    arriving, by_hand = table()[kind]
    model, x = network(kind), torch.tensor([SENDERS[kind][0]], dtype=torch.float32)
    module = model.module()
    source = model.graph["p"].inputs[0]
    values = module.evaluate({"input": module.as_signal(x)}, [source])[source].tensor
    assert values.reshape(-1).tolist() == arriving
    assert counted(count_model(model, x)["p"], by_hand) == by_hand
    run = count_run(Network(build_event_network(model)), x.numpy())
    assert counted(run.counts["p"], by_hand) == by_hand


@pytest.mark.parametrize("kind", SENDERS)
def test_energy_is_of_these_counts(kind: str, tmp_path: Path) -> None:
    _, by_hand = table()[kind]
    model, x = network(kind), np.array([SENDERS[kind][0]], np.float32)
    save(model, tmp_path / "net.safetensors")
    np.save(tmp_path / "x.npy", x)
    words = ("energy", str(tmp_path / "net.safetensors"), "--input", str(tmp_path / "x.npy"))
    result = CliRunner().invoke(root, [*words, "--format", "json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    layers = {row["name"]: row["counts"] for row in document["layers"]}
    assert {name: layers["p"][name] for name in by_hand} == by_hand
    assert document["compat"]["upr_sops"] == {"num": by_hand["synops"], "den": 1}
    synops = by_hand["synops"] + layers["head"]["synops"]
    by_model = {entry["model"]: entry for entry in document["energy"]}
    terms, above_1 = by_model["ops45_fp32"]["terms"], "graded" in kind
    assert terms["synops"] == 9 * synops and terms["macs"] == 46 * by_hand["macs_effective"]
    more = 46 * by_hand["synops_events"] - 9 * by_hand["synops"] if above_1 else 0
    assert terms["graded"] == more + (46 - 9) * layers["head"]["synops"]


def test_every_kind_of_edge_has_its_row() -> None:
    assert table().keys() == SENDERS.keys()
    for kind in SENDERS:
        edge = network(kind).graph.edges[network(kind).graph["p"].inputs[0]]
        assert {edge.kind, *(["signed"] if edge.low else [])} & set(kind.split(" and "))
