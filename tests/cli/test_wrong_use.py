"""What every command says of paths of the wrong kind and of numbers beyond the limits."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from deployed import Files, make_files

from soul_deploy.base.errors import PathKindError
from soul_deploy.base.files import require_output, write_text
from soul_deploy.cli.main import root
from soul_deploy.runtime.format.validate import MAX_STEPS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_files(tmp_path_factory.mktemp("files"))


def soul_deploy(*words: object) -> Result:
    return CliRunner().invoke(root, [str(word) for word in words])


def refused(*words: object) -> str:
    """What a wrong use prints; its exit code is 2."""
    result = soul_deploy(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


READERS = (
    "inspect FOLDER",
    "run FOLDER FOLDER",
    "verify FOLDER EVENT",
    "energy FOLDER",
    "export onnx FOLDER",
    "export event FOLDER",
    "export nir FOLDER",
    "import nir FOLDER",
    "import torch torch.nn:Flatten --model_path FOLDER --input_shape 1 8 8 --classes 64",
    "import zoo spikingvgg5 --model_path FOLDER --input_shape 1 8 8 --classes 10",
    "prune compact FOLDER",
    "prune structured --mode load --model_path FOLDER --dataset_name digits",
    "prune unstructured --model_path FOLDER --dataset_name digits",
    "bench sparse --model FOLDER",
    "bench sparse --event EVENT --compare FOLDER",
)


@pytest.mark.parametrize("line", READERS)
def test_a_folder_is_no_file_to_read(files: Files, tmp_path: Path, line: str) -> None:
    known = {"FOLDER": tmp_path, "EVENT": files.compact_event, "MODEL": files.compact}
    text = refused(*(known.get(word, word) for word in line.split()))
    assert f"{tmp_path} is not a file; it is a folder; give the path of a file" in text


WRITERS = (
    "export onnx MODEL --input random",
    "export event MODEL --input random",
    "prune compact MODEL",
    "import torch torch.nn:Flatten --input_shape 1 8 8 --classes 64",
    "bench sparse --event EVENT",
)


@pytest.mark.parametrize("line", WRITERS)
def test_a_folder_is_no_file_to_write(files: Files, tmp_path: Path, line: str) -> None:
    known = {"EVENT": files.compact_event, "MODEL": files.compact}
    words = [known.get(word, word) for word in line.split()]
    assert f"{tmp_path} is a folder, and what is written is a file" in refused(
        *words, "-o", tmp_path
    )
    assert "name a file" in refused(*words, "-o", "")
    below = files.compact / "inside"
    assert f"{below} cannot be written: {files.compact} is not a folder" in refused(
        *words, "-o", below
    )
    assert list(tmp_path.iterdir()) == []


def test_a_path_to_write_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    assert require_output(tmp_path / "new" / "file") == tmp_path / "new" / "file"
    with pytest.raises(PathKindError, match="/dev/null is no regular file"):
        write_text(Path("/dev/null"), "text")
    with pytest.raises(PathKindError, match="is a folder"):
        write_text(tmp_path, "text")
    assert list(tmp_path.iterdir()) == []


def test_nothing_replaces_its_own_source(files: Files, tmp_path: Path) -> None:
    content = files.masked.read_bytes()
    link = tmp_path / "link.safetensors"
    link.symlink_to(files.masked)
    for target in (files.masked, link):
        for words in (("prune", "compact"), ("export", "event"), ("export", "onnx")):
            text = refused(*words, files.masked, "-o", target)
            assert f"{target} is the model itself; give another --output" in text
    assert files.masked.read_bytes() == content


STEPPERS = (
    "export onnx MODEL --input random",
    "export event MODEL --input random",
    "export nir MODEL",
    "verify MODEL EVENT --input random",
    "energy MODEL --dataset_name digits",
    "import nir MODEL",
    "import torch torch.nn:Flatten --input_shape 1 8 8 --classes 64",
    "train --dataset_name digits",
    "bench sparse --reference",
)


@pytest.mark.parametrize("line", STEPPERS)
@pytest.mark.parametrize("steps", [MAX_STEPS + 1, 99999999])
def test_time_steps_are_bounded(files: Files, line: str, steps: int) -> None:
    known = {"EVENT": files.compact_event, "MODEL": files.compact}
    text = refused(*(known.get(word, word) for word in line.split()), "-T", steps)
    assert f"time_step {steps}: the limit is 65535 steps; give 1 to 65535" in text


THREADED = (
    "verify MODEL EVENT --input random",
    "export onnx MODEL --input random",
    "energy MODEL --dataset_name digits",
    "train --dataset_name digits",
    "prune structured --dataset_name digits",
    "prune unstructured --dataset_name digits",
    "bench sparse --onnx_compact ONNX",
)


@pytest.mark.parametrize("line", THREADED)
def test_threads_are_bounded(files: Files, line: str) -> None:
    known = {"EVENT": files.compact_event, "MODEL": files.compact, "ONNX": files.compact_onnx}
    words = [known.get(word, word) for word in line.split()]
    text = refused(*words, "--threads", 257)
    assert "threads 257: the limit is 256; give 1 to 256" in text
    assert "give 1 to 256" in refused("run", files.compact_event, files.compact, "--threads", 257)
