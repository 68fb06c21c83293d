"""C of float32: equal to numpy in its order of sums, and to PyTorch as engines that round are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from counting_nets import counting_network, inputs
from deployed import small_model
from drawn_fixed import draw_float

from soul_deploy import NeuronSpec, ir
from soul_deploy.base import errors
from soul_deploy.cli.main import root
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.c import harness
from soul_deploy.export.c.golden import frames_of, golden
from soul_deploy.export.c.program import make_program
from soul_deploy.export.c.rows import LAYOUTS
from soul_deploy.export.c.write import build_c, export_c, program_files
from soul_deploy.export.verify import c as c_check
from soul_deploy.export.verify.c import verify_c
from soul_deploy.model.file import save
from soul_deploy.model.model import Model

CC = harness.compiler()
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler on this machine")


def pixels(model: Model, samples: int = 3) -> Any:
    return np.random.default_rng(5).integers(0, 256, (samples, *model.input_shape)).astype(np.uint8)


@needs_cc
def test_random_networks_are_equal_to_numpy_and_agree_with_pytorch(tmp_path: Path) -> None:
    assert CC is not None
    cases = draw_float(30)
    programs = [
        build_c(case.model, case.given, layout=LAYOUTS[i % 4], prefix=f"n{i}", as_float=True)
        for i, case in enumerate(cases)
    ]
    executable = harness.build(programs, tmp_path, CC, ("-O1",))
    given = [
        (p.program, frames_of(p.program, c.images)) for p, c in zip(programs, cases, strict=True)
    ]
    fired = 0
    for case, found, shown in zip(cases, programs, harness.run(executable, given), strict=True):
        model = golden(found.program, case.images)
        for name, spikes in model.spikes.items():
            np.testing.assert_array_equal(shown.spikes[name], spikes, name)
            np.testing.assert_array_equal(shown.membranes[name], model.membranes[name], name)
            fired += bool(spikes.any())
        np.testing.assert_array_equal(shown.scores, model.scores)
        assert shown.synops == model.synops
        whole = c_check.against_pytorch(found.program, shown, case.images)
        assert whole.passed, whole
        if case.exact:  # sums without rounding: no order matters
            assert not whole.flipped and not whole.logit_difference
    assert fired > sum(len(case.model.graph.populations) for case in cases) / 2


@needs_cc
def test_the_commands(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save(small_model(), path)
    words = ["export", "c", path, "-o", tmp_path / "c", "--float", "--input", "random"]
    made = CliRunner().invoke(root, [str(word) for word in words])
    assert made.exit_code == 0 and "Verified: yes" in made.output, made.output
    assert "against PyTorch" in made.output and "same class on" in made.output
    again = ["verify", str(path), str(tmp_path / "c"), "--input", "random"]
    verified = CliRunner().invoke(root, again)
    assert verified.exit_code == 0, verified.output
    head = (tmp_path / "c" / "model.h").read_text()
    assert "float32" in head.splitlines()[0] and "It is\n * for comparison" in head


@needs_cc
def test_a_float_program_that_computes_something_else_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()

    def wrong(*given: Any) -> Any:
        found = program_files(*given)
        text = found.texts["model.c"].replace("v + (0.0f - v", "v + (0.125f - v")
        assert text != found.texts["model.c"]
        return replace(found, texts={**found.texts, "model.c": text})

    export_c(model, tmp_path, pixels(model), as_float=True)
    monkeypatch.setattr(c_check, "program_files", wrong)
    monkeypatch.setattr(c_check, "_differences", lambda *_: ())
    report = verify_c(model, tmp_path, pixels(model))
    assert report.verdict is Verdict.FAILED
    assert report.populations[0].differing_membranes and report.whole.unexplained


def test_what_is_refused(tmp_path: Path) -> None:
    model = small_model()
    nodes = [
        replace(n, neuron=NeuronSpec("clif")) if isinstance(n, ir.Population) else n
        for n in model.graph.nodes
    ]
    other = replace(model, graph=ir.SpikingGraph(tuple(nodes), model.graph.time_steps))
    with pytest.raises(errors.UnsupportedGraphError, match="'clif' have no equation in C"):
        make_program(other, as_float=True)
    with pytest.raises(errors.UsageError, match="leave --float out"):
        make_program(counting_network(), as_float=True)
    export_c(model, tmp_path, pixels(model), as_float=True)
    with pytest.raises(errors.UsageError, match="fixed-point model"):
        verify_c(counting_network(), tmp_path, inputs())
