"""The files: what they hold, what is refused, and `verify` on a folder."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from counting_nets import counting_network, inputs
from deployed import small_model
from hypothesis import given
from hypothesis import strategies as st

from soul_deploy import ir
from soul_deploy.base import errors
from soul_deploy.cli.main import root
from soul_deploy.equivalence.verdict import Verdict
from soul_deploy.export.c import harness
from soul_deploy.export.c.placement import Need, place
from soul_deploy.export.c.program import Program, make_program
from soul_deploy.export.c.rows import Rows, rows_of
from soul_deploy.export.c.write import CProgram, build_c, export_c, program_files
from soul_deploy.export.verify import c as c_check
from soul_deploy.export.verify.c import verify_c
from soul_deploy.model.file import save
from soul_deploy.model.model import Model

CC = harness.compiler()
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler on this machine")


def compiled(folder: Path, main: str, *flags: str) -> str:
    """What a program prints that includes files of the folder."""
    (folder / "main.c").write_text(main)
    command = [str(CC), *harness.STRICT, "-O1", *flags, "main.c", "-o", "made"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return subprocess.run(["./made"], cwd=folder, capture_output=True, text=True).stdout


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    export_c(counting_network(), tmp_path / "net", inputs())
    return tmp_path / "net"


def test_the_model_uses_no_float_no_heap_and_no_stdio(exported: Path) -> None:
    for name in ("model.c", "model.h", "weights.c", "weights.h"):
        code = without_comments((exported / name).read_text())
        assert not re.search(r"\b(float|double|malloc|free|printf|stdio|memcpy)\b|\d\.\d", code)
    assert set(re.findall(r"#include <(.*)>", (exported / "model.c").read_text())) == {"stddef.h"}


@needs_cc
def test_the_self_test_passes_and_fails_with_another_weight(exported: Path) -> None:
    make = ["make", "-s", "test", f"CC={CC}"]
    done = subprocess.run(make, cwd=exported, capture_output=True, text=True)
    assert done.returncode == 0 and "passed: 2 samples, 0 differences" in done.stdout, done.stderr
    weights = exported / "weights.c"
    text = weights.read_text()
    first = re.search(r"_weights\[\d+\] = \{\n +(-?\d+),", text)
    assert first is not None
    weights.write_text(text[: first.start(1)] + "-127" + text[first.end(1) :])
    done = subprocess.run(make, cwd=exported, capture_output=True, text=True)
    assert done.returncode != 0 and "FAILED" in done.stdout


@needs_cc
def test_the_state_is_as_large_as_the_header_says(exported: Path) -> None:
    main = '#include "model.h"\n#include <stdio.h>\nint main(void)\n{\n'
    main += '    printf("%lu", (unsigned long)sizeof(soul_state));\n    return 0;\n}\n'
    told = re.search(r"RAM: (\d+) bytes", (exported / "model.h").read_text())
    assert told is not None
    assert int(told[1]) <= int(compiled(exported, main)) <= int(told[1]) + 8  # padding


@needs_cc
def test_two_networks_fit_into_one_program(tmp_path: Path) -> None:
    programs = [build_c(counting_network(), inputs(), prefix=name) for name in ("a", "b_2")]
    assert CC is not None and harness.build(programs, tmp_path, CC).exists()


@needs_cc
def test_gcc_s_analyzer_finds_nothing(exported: Path) -> None:
    if b"clang" in subprocess.run([str(CC), "--version"], capture_output=True).stdout:
        pytest.skip("-fanalyzer is gcc's")
    command = [str(CC), *harness.STRICT, "-O2", "-fanalyzer", "-fsyntax-only", "model.c"]
    said = subprocess.run(command, cwd=exported, capture_output=True, text=True)
    assert said.returncode == 0 and not said.stderr


def renamed(model: Model, name: str) -> Model:
    """The counting network whose convolution is called otherwise."""
    nodes = [replace(n, name=name) if n.name == "conv" else n for n in model.graph.nodes]
    nodes = [replace(n, inputs=(name,)) if n.inputs == ("conv",) else n for n in nodes]
    state = {k.replace("conv.", f"{name}."): array for k, array in model.state.items()}
    return replace(model, graph=ir.SpikingGraph(tuple(nodes), 3), state=state)


@needs_cc
@pytest.mark.parametrize("name", ["*/ evil(); /*", 'a"b\\\nc', "größe", "int", "??/", "a" * 300])
def test_names_of_layers_never_reach_the_compiler(tmp_path: Path, name: str) -> None:
    report = verify_written(renamed(counting_network(), name), tmp_path / "net")
    assert report.verdict is Verdict.PASSED
    text = (tmp_path / "net" / "model.c").read_text()
    assert text.isascii() and "evil();" not in without_comments(text)


def verify_written(model: Model, folder: Path, **how: Any) -> Any:
    export_c(model, folder, inputs(), **how)
    return verify_c(model, folder, inputs())


@needs_cc
def test_every_layout_is_verified(tmp_path: Path) -> None:
    for layout in ("dense", "csr", "speed"):
        report = verify_written(counting_network(), tmp_path / layout, layout=layout)
        assert report.verdict is Verdict.PASSED and report.samples == 2, report.text()


@pytest.mark.parametrize("name", ["model.h", "model.c", "weights.h", "weights.c", "Makefile"])
def test_another_byte_fails_and_is_not_compiled(exported: Path, name: str) -> None:
    path = exported / name
    path.write_text(f"{path.read_text()}#error compiled\n")
    report = verify_c(counting_network(), exported, inputs())
    assert report.verdict is Verdict.FAILED and report.samples == 0
    assert [problem.split(":")[0] for problem in report.problems or ()] == [name]


def test_a_program_of_another_model_fails(exported: Path) -> None:
    model = counting_network()
    weight = model.state["conv.weight"].copy()
    weight[0, 0, 0, 0] += 1
    other = replace(model, state={**model.state, "conv.weight": weight})
    report = verify_c(other, exported, inputs())
    assert (
        report.verdict is Verdict.FAILED and report.problems and "weights.c" in report.problems[0]
    )


@needs_cc
def test_a_program_that_computes_something_else_fails(
    monkeypatch: pytest.MonkeyPatch, exported: Path
) -> None:
    def wrong(program: Program, *given: Any) -> Any:
        found = program_files(program, *given)
        texts = dict(found.texts)
        texts["model.c"] = texts["model.c"].replace("h > 40", "h > 20")
        return replace(found, texts=texts)

    monkeypatch.setattr(c_check, "program_files", wrong)
    monkeypatch.setattr(c_check, "_differences", lambda *_: ())
    report = verify_c(counting_network(), exported, inputs())
    assert report.verdict is Verdict.FAILED and report.populations[0].differing_spikes > 0


def test_a_folder_of_something_else_is_refused(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(errors.FileFormatError, match=r"holds no model\.h"):
        verify_c(counting_network(), tmp_path, inputs())
    (exported / "model.h").write_text("/* soul-deploy/c/9 */")
    with pytest.raises(errors.FileFormatError, match="export it again"):
        verify_c(counting_network(), exported, inputs())


@pytest.mark.parametrize(
    ("found", "put"), [("#define SAMPLES 2", "#define SAMPLES 3"), ("{\n    ", "{\n    999, ")]
)
def test_samples_that_are_none_are_refused(exported: Path, found: str, put: str) -> None:
    path = exported / "test_model.c"
    path.write_text(path.read_text().replace(found, put, 1))
    with pytest.raises(errors.FileFormatError, match="no samples of this network"):
        verify_c(counting_network(), exported, inputs())


def invoke(*words: object) -> Any:
    return CliRunner().invoke(root, [str(word) for word in words])


def saved(folder: Path, model: Model) -> Path:
    save(model, folder / "net.safetensors")
    return folder / "net.safetensors"


@needs_cc
def test_the_commands(tmp_path: Path) -> None:
    path = saved(tmp_path, counting_network())
    made = invoke("export", "c", path, "-o", tmp_path / "c", "--input", "random", "--prefix", "n")
    assert made.exit_code == 0, made.output
    assert "Flash:" in made.output and "Verified: yes" in made.output
    words = "verify", path, tmp_path / "c", "--input", "random"
    assert invoke(*words).exit_code == 0
    (tmp_path / "c" / "weights.c").write_text("")
    assert invoke(*words).exit_code == 1


def test_without_a_compiler_it_is_inconclusive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    path = saved(tmp_path, counting_network())
    made = invoke("export", "c", path, "-o", tmp_path / "c", "--input", "random")
    assert made.exit_code == 0 and "no C compiler" in made.output
    done = invoke("verify", path, tmp_path / "c", "--input", "random")
    assert done.exit_code == 3 and "no C compiler" in done.output


def test_what_is_refused_says_what_to_do(tmp_path: Path) -> None:
    path = saved(tmp_path, small_model())
    done = invoke("export", "c", path, "--input", "random")
    assert done.exit_code == 2 and "soul-deploy quantize" in done.output
    fixed = tmp_path / "fixed.safetensors"
    save(counting_network(), fixed)
    done = invoke("export", "c", fixed, "--float", "--input", "random")
    assert done.exit_code == 2 and "leave --float out" in done.output
    with pytest.raises(errors.UsageError, match="prefix"):
        make_program(counting_network(), prefix="A b")
    with pytest.raises(errors.UnknownNameError, match="layout"):
        make_program(counting_network(), layout="best")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.PathKindError):
        export_c(counting_network(), tmp_path / "file", inputs())


def test_rows_are_stored_as_asked() -> None:
    weight = np.zeros((4, 300), np.int8)
    weight[1, 299] = -128 + 1
    sparse = rows_of(weight, "size")
    assert sparse.compressed and sparse.index_type == "uint16_t" and sparse.bytes == 3 + 5 * 2
    assert sparse.tables["places"][1].tolist() == [299]
    assert sparse.tables["starts"][1].tolist() == [0, 0, 1, 1, 1]
    assert Rows(weight[:, :256], True).index_type == "uint8_t"
    assert not rows_of(weight, "dense").compressed and rows_of(weight, "dense").bytes == 1200
    full = np.ones((4, 8), np.int8)
    assert not rows_of(full, "size").compressed and not rows_of(full, "speed").compressed
    assert rows_of(full, "csr").compressed


needs = st.lists(
    st.tuples(
        st.sampled_from(("uint8_t", "uint16_t", "float")),
        *(st.integers(1, 50), st.integers(0, 9), st.integers(0, 9)),
    )
)


@given(needs)
def test_arrays_in_use_at_once_never_overlap(drawn: list[tuple[str, int, int, int]]) -> None:
    given_needs = [Need(str(i), b, n, min(a, z), max(a, z)) for i, (b, n, a, z) in enumerate(drawn)]
    found = place(given_needs)
    for one in given_needs:
        start = found.offsets[one.key]
        assert start >= 0 and start + one.length <= found.lengths[one.type]
        for other in given_needs:
            if other is not one and other.type == one.type and one.meets(other):
                other_start = found.offsets[other.key]
                assert start + one.length <= other_start or other_start + other.length <= start


def test_memory_is_shared_by_layers_that_are_not_in_use_at_once() -> None:
    chain = [Need(str(i), "uint16_t", 100, i, i + 1) for i in range(6)]
    assert place(chain).bytes == 400


def test_a_written_program_shows_its_sizes() -> None:
    found: CProgram = build_c(counting_network(), inputs(), layout="dense")
    assert (
        found.flash == 3 * 2 * 9 + 6 * 60
    )  # no other table: threshold and zero bias are in the loops
    text = found.texts["model.h"]
    assert f"Flash: {found.flash} bytes" in text and f"RAM: {found.ram} bytes" in text


@needs_cc
def test_a_program_that_does_not_end_is_stopped(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "BUILD_SECONDS", 0.001)
    report = verify_c(counting_network(), exported, inputs())
    assert report.verdict is Verdict.FAILED
    assert "has not ended after 0.001 s; verify fewer samples" in report.text()
