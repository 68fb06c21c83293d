"""`soul-deploy report`: what the page shows, that nothing of a file becomes markup, refusals."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import soul_deploy
from soul_deploy.base import errors
from soul_deploy.base.files import file_sha256
from soul_deploy.base.tables import Table
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import export_event
from soul_deploy.frontend.from_torch import trace
from soul_deploy.ir import NeuronSpec
from soul_deploy.model.file import save
from soul_deploy.model.model import Model, ModelInfo, from_module
from soul_deploy.nn import layers
from soul_deploy.nn.graph_module import GraphModule
from soul_deploy.nn.neuron import SpikingNeuron
from soul_deploy.reporting import documents as kinds
from soul_deploy.reporting import page
from soul_deploy.reporting import report as reporting

EVIL = "<script>alert(1)</script>"
MARKUP = "a|b*c_`d`<img src=x onerror=alert(2)>\"'&amp;"


def network(width: int = 3, stage: Any = "dense") -> Model:
    """A network for 8×8 images whose classes and provenance hold markup."""
    torch.manual_seed(1)
    modules = nn.Sequential(
        layers.Conv2d(1, width, 3, 2),
        SpikingNeuron(NeuronSpec(v_threshold=0.1), 2),
        layers.Flatten(),
        nn.Linear(9 * width, 10),
        SpikingNeuron(NeuronSpec(v_threshold=0.05), 2),
        layers.RateReadout(10, 10),
    )
    module = GraphModule(trace(modules, (1, 8, 8), 2))
    module.load_state_dict(modules.state_dict())
    made = {"accuracy": {"test": 0.75}, "command": f"prune {EVIL}"}
    return from_module(module, ModelInfo(stage, None, (EVIL, *"123456789"), made))


def flip(layer: str, distance: float | None, cause: Any = None) -> dict[str, Any]:
    told = {"layer": layer, "step": 1, "sample": 0, "neuron": [0, 1, 2], "fired": True}
    return {**told, "distance": distance, "allowance": 1e-6, "cause": cause, "sent": 0}


def spikes(layer: str, flips: list[dict[str, Any]], unexplained: int = 0) -> dict[str, Any]:
    numbers = {"neurons": 9, "samples": 4, "golden_spikes": 20, "driven_spikes": 20}
    found = {"differing": len(flips), "flipped": len(flips), "unexplained": unexplained}
    return {"layer": layer, **numbers, **found, "flips": flips, "compared": True}


def verification(artifact: str) -> dict[str, Any]:
    """The second of three layers differs first; one flip of the third is unexplained."""
    follows = flip("3", 0.5, flip("1", 1e-7))
    rows = [spikes("0", []), spikes("1", [flip("1", 1e-7)]), spikes("3", [follows, flip("3", 0.2)])]
    whole = {"samples": 4, "agreeing": 3, "passed": False, "layers": rows}
    head = {"schema": "soul-deploy/verify/3", "verdict": "failed", "artifact": artifact}
    told = {"kind": "event", "images": EVIL, "silent_layers": ["0"], "forced": None}
    return {**head, **told, "static": {"passed": True, "problems": []}, "end_to_end": whole}


def write(path: Path, document: Any) -> str:
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: two networks, an export of one, results that are about them."""
    monkeypatch.chdir(tmp_path)
    save(network(), "dense.safetensors")
    small = network(2, "masked")
    masks = {small.graph.populations[0].name: np.array([True, False])}
    save(Model(small.graph, small.state, masks, small.info), "masked.safetensors")
    sha256 = file_sha256(Path("dense.safetensors"))
    export_event(network(), "net.event", source_sha256=sha256)
    size = Path("dense.safetensors").stat().st_size
    row = {"epoch": 1, "loss": 1.5, "train_accuracy": 0.5, "validation_accuracy": 0.25}
    train = {"schema": "soul-deploy/train/1", "model": "x/dense.safetensors", "bytes": size}
    write(Path("train.json"), {**train, "test_accuracy": 0.75, "epochs": [row, row]})
    write(Path("verify.json"), verification("net.event"))
    timing = {"engine": "event", "file": "net.event", "threads": 1, "batch_size": 1}
    timing |= {"file_bytes": Path("net.event").stat().st_size, "p50_ms": 0.125, "p90_ms": 0.25}
    profile = {"layers": [{"layer": "1", "us": {"currents": 3.0, "neurons": 4.5}}]}
    head = {"schema": "soul-deploy/bench/1", "environment": {"cpu": EVIL}, "input": "random"}
    write(Path("bench.json"), {**head, "entries": [timing], "profile": profile})
    return tmp_path


FILES = ("dense.safetensors", f"{MARKUP}=masked.safetensors", "net.event")
RESULTS = ("train.json", "verify.json", "bench.json")


def run(*words: object) -> Result:
    return CliRunner().invoke(root, ["report", *map(str, words)])


class Page(HTMLParser):
    """The elements of a page: those that are open, attributes, texts of scripts."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)

    def values(self, name: str) -> list[str]:
        return [str(held[name]) for _, held in self.elements if name in held]


def test_one_page_shows_all_and_nothing_of_a_file_becomes_markup(place: Path) -> None:
    words = (*FILES, *RESULTS, "--input", "random", "--samples", 4, "--shown", 1)
    result = run(*words, "--title", EVIL, "-o", "out.html")
    assert result.exit_code == 0, result.output
    text = Path("out.html").read_text()
    found = Page(text)
    assert len(text.encode()) < 1_000_000 and EVIL not in text and "<img" not in text
    assert "&lt;script&gt;alert(1)" in text and "&lt;img src=x" in text
    assert len(found.scripts) == 1 and "alert(" not in found.scripts[0]
    policies = [v for v in found.values("content") if v.startswith("default-src 'none'")]
    assert len(policies) == 1 and "script-src 'sha256-" in policies[0]
    ids = found.values("id")
    assert len(ids) == len(set(ids)) > 10
    links = [*found.values("href"), *found.values("xlink:href")]
    assert {link for link in links if not link.startswith("data:")} <= {f"#{name}" for name in ids}
    assert len(links) > 10
    assert not {"src", "onclick", "onerror", "onload"} & {
        a for _, held in found.elements for a in held
    }
    assert "://" not in re.sub(r'(xmlns(:xlink)?)="[^"]*"', "", text)
    for told in ("75.00%", "0.125", "7.5", "differs first", "UNEXPLAINED", "spikes: steps from"):
        assert told in text, told


def test_what_belongs_together_is_found(place: Path) -> None:
    """Hand-counted: weights, the join by digest and by name and size, verdict and time."""
    found = soul_deploy.report([*FILES, *RESULTS])
    dense, masked = found.networks
    assert dense.weights == (3 * 9 + 27 * 10 + 10 * 10,) * 2
    assert (dense.accuracy, dense.times) == (0.75, {"event runtime": 0.125})
    assert dense.profile == {"1": 7.5} and dense.verdicts == ("event failed",)
    assert [export.kind for export in dense.exports] == ["event"] and not masked.exports
    assert masked.label == MARKUP and masked.times == {}
    table = next(part for part in found.parts() if isinstance(part, Table))
    assert [row[0] for row in table.rows] == [f"{EVIL} dense", MARKUP]
    (checked,) = found.of(kinds.Verified)
    assert checked.first is not None and checked.first.layer == "1"
    assert [f.explained for f in checked.flips] == [True, True, False]
    (plan,) = found.of(kinds.Removed)
    assert plan.layers[0][1:4] == (2, 1, {"masked": 1})


def test_markdown_holds_the_tables_and_no_markup(place: Path) -> None:
    result = run(*FILES, *RESULTS, "--format", "markdown")
    assert result.exit_code == 0, result.output
    assert "a\\|b\\*c\\_\\`d\\`\\<img" in result.stdout and "<script>" not in result.stdout
    rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert rows and all(re.match(r"\| .* \|$", row) for row in rows)
    widths = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert all(
        a == b for a, b, row in zip(widths[1:], widths, rows[1:], strict=False) if "--" in row
    )


def test_counts_are_those_of_energy(place: Path) -> None:
    """A count that `energy` printed and the one made on the same images are one record."""
    images = np.random.default_rng(0).random((6, 1, 8, 8), np.float32)
    measured = soul_deploy.count(network(), images)
    made = soul_deploy.report(["dense.safetensors"], images=images, shown=0).networks[0].counted
    assert made is not None and made.synops * 6 == measured.totals["synops"]
    assert [row.name for row in made.layers] == [row.name for row in measured.layers]
    write(Path("energy.json"), measured.to_dict())
    (alone,) = soul_deploy.report(["energy.json"]).networks
    assert alone.counted is not None and alone.counted.layers == made.layers
    energy = measured.ops[0].picojoules / 6 / 1e3
    assert alone.counted.energy == pytest.approx(energy) and alone.size is None


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"schema": "soul-deploy/inspect/1"}, "which a report does not show"),
        ({"schema": "soul-deploy/train/1", "model": 3}, "'model' is not a text"),
        ({**verification("x"), "end_to_end": []}, "'end_to_end' is not an object"),
        ({"schema": "soul-deploy/bench/1", "entries": [{"engine": "e"}]}, "is not"),
        ([1], "which a report does not show"),
    ],
)
def test_a_damaged_result_is_refused_in_words(place: Path, document: Any, told: str) -> None:
    Path("out.html").write_text("old")
    result = run(*FILES, write(Path("bad.json"), document), "-o", "out.html")
    assert result.exit_code == 1 and told in result.stderr and "bad.json" in result.stderr
    assert Path("out.html").read_text() == "old"


def test_other_files_and_places_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("images.npy", np.zeros((1, 8, 8)))
    Path("text.txt").write_text("no")
    for words, code, told in (
        (["images.npy"], 1, "a model file, an export, or what a command printed"),
        (["text.txt"], 1, "of no kind that a report shows"),
        (["lost.safetensors"], 2, "lost.safetensors"),
        (["dense.safetensors", "-o", "dense.safetensors"], 2, "the model itself"),
    ):
        result = run(*words)
        assert result.exit_code == code and told in result.stderr, result.stderr
    monkeypatch.setattr(page, "LARGEST", 1000)
    with pytest.raises(errors.LimitError, match="fewer files"):
        soul_deploy.report(["train.json"]).html()
    monkeypatch.setattr(reporting, "find_spec", lambda name: None)
    result = run("train.json")
    assert result.exit_code == 2 and "pip install jinja2 matplotlib networkx" in result.stderr
