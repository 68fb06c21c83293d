"""docs/networks.md: it is what was measured, its refusals help, and some rows are measured here."""

import json
import re
from pathlib import Path
from typing import Any

import make_table
import measure
import pytest
import torch
from row import Own, Row
from torch import nn

from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.layers import RateReadout
from soul_deploy.nn.neuron import SpikingNeuron

FOUND = make_table.kept()
ROWS = [(tool, row) for tool, told in FOUND.items() for row in told["rows"]]
REFUSALS = [
    pytest.param(row, column, id=f"{tool}-{row['network']}-{row['neuron']}-{column}")
    for tool, row in ROWS
    for column in row["refusals"]
]
TO_DO = r"supported|[Gg]ive |[Tt]rain |[Ee]xport |[Pp]ut |[Mm]ake |[Ww]rite |[Ee]nd |Valid here"


def test_the_page_is_what_was_measured() -> None:
    assert make_table.PAGE.read_text() == make_table.page(FOUND)


def test_there_are_many_networks_of_each_tool() -> None:
    assert list(FOUND) == list(make_table.PACKAGES)
    assert len(ROWS) >= 55
    assert all(len(told["rows"]) >= 2 for told in FOUND.values())
    taken = [row for _, row in ROWS if row["cells"]["traced"] != "refused"]
    assert len(taken) >= 0.7 * len(ROWS)
    cells = r"yes|refused|\d+ explained|structured|unstructured|no: .+|from_torch|import \w+|trace"
    for _, row in ROWS:
        for text in row["cells"].values():
            assert re.fullmatch(cells, text), (row["network"], text)


@pytest.mark.parametrize(("row", "column"), REFUSALS)
def test_a_refusal_names_the_place_and_says_what_to_do(row: dict[str, Any], column: str) -> None:
    text = row["refusals"][column].replace("not supported", "refused")
    words = set(re.findall(r"[\w.]+", text.replace(". ", " ")))
    named = [name for name in row["names"] if name in words or f"'{name}'" in text]
    assert named, f"{text}\nnames none of {row['names']}"
    assert re.search(TO_DO, text), text


def light() -> list[Any]:
    found = []
    for tool in ("spikingjelly_2", "snntorch", "soul"):
        package, _ = measure.TOOLS[tool]
        if package:
            pytest.importorskip(package, reason="`make` installs it for these tests")
        found += [
            pytest.param(tool, row, id=f"{tool}-{row.neuron}")
            for row in measure.rows_of(tool)
            if row.light
        ]
    return found


@pytest.mark.parametrize(("tool", "row"), light())
def test_a_row_is_still_so(tool: str, row: Row) -> None:
    told = FOUND[tool]["rows"]
    (kept,) = (
        r
        for r in told
        if (r["network"], r["neuron"], r["way"]) == (row.network, row.neuron, row.way)
    )
    found = measure.measured(row)
    assert found.cells == kept["cells"]
    assert found.refusals == kept["refusals"]


@pytest.mark.soak
@pytest.mark.parametrize("tool", make_table.PACKAGES)
def test_all_rows_are_still_so(tool: str, tmp_path: Path) -> None:
    """Each tool in its environment, which is made if there is none."""
    found = json.loads(make_table.measure(tool, tmp_path).read_text())
    cells = [[(r["network"], r["neuron"]), r["cells"]] for r in found["rows"]]
    assert cells == [[(r["network"], r["neuron"]), r["cells"]] for r in FOUND[tool]["rows"]]


def lif(current: torch.Tensor) -> tuple[Model, torch.Tensor, torch.Tensor]:
    """A LIF of this package behind a linear layer of ones; its spikes and scores."""
    steps, _, width = current.shape
    neuron = SpikingNeuron(NeuronSpec(), steps)
    network = nn.Sequential(nn.Linear(width, width, bias=False), neuron, RateReadout(width, 2))
    with torch.no_grad():
        network.get_parameter("0.weight").copy_(torch.eye(width))
    module = GraphModule(trace(network, (width,), steps))
    module.load_state_dict(network.state_dict())
    model = from_module(module, ModelInfo())
    found = model.module().record(current)
    return model, found.spikes["1"].float(), found.logits


def test_what_is_wrong_is_no_measurement() -> None:
    """A silent population, one spike too many, one at a tie, another score, another population."""
    current = torch.tensor([[[1.0, 4.0, 2.0]], [[3.0, 0.0, 1.0]]])
    model, spikes, scores = lif(current)
    assert spikes.flatten().tolist() == [0, 1, 0, 1, 0, 0]  # the third stands at its threshold
    assert measure.compared(model, Own({"1": spikes}, scores), current) == "yes"
    tied = spikes.clone()
    tied[0, 0, 2] = 1
    found = measure.compared(model, Own({"1": tied}, scores), current)
    assert found == "1 explained"
    far = spikes.clone()
    far[0, 0, 0] = 1
    for own, text in (
        (Own({"1": far}, scores), "1 of 1 differences unexplained"),
        (Own({"1": spikes}, scores + 0.1), "scores differ by 0.1"),
        (Own({"2": spikes}, scores), "populations"),
        (Own({"1": spikes[:1]}, scores), r"of the tool \(1, 1, 3\)"),
    ):
        with pytest.raises(measure.RowError, match=text):
            measure.compared(model, own, current)
    with pytest.raises(measure.RowError, match=r"1 sends \[0.0\] alone"):
        measure.require_firing(Own({"1": spikes * 0}, scores))
