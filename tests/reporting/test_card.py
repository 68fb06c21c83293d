"""`soul-deploy card`: Hugging Face's own library reads what it writes; nothing becomes markup."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_report import EVIL, network, verification

from soul_deploy.base.files import file_sha256
from soul_deploy.cli.main import root
from soul_deploy.export.event.build import export_event
from soul_deploy.model.file import save

hub: Any = pytest.importorskip("huggingface_hub", reason="reads the cards; `make` installs it")


def run(*words: str) -> Result:
    return CliRunner().invoke(root, ["card", *words])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(network(), "mine.safetensors")
    export_event(network(), "net.event", source_sha256=file_sha256(Path("mine.safetensors")))
    Path("verify.json").write_text(json.dumps(verification("some/where/net.event")))
    Path("other.json").write_text(json.dumps(verification("other.event")))
    return tmp_path


def test_the_hubs_library_reads_what_the_file_says(place: Path) -> None:
    files = ("mine.safetensors", "net.event", "verify.json", "other.json")
    result = run(*files, "-o", "README.md", "--license", "mit")
    assert result.exit_code == 0, result.output
    card = hub.ModelCard.load("README.md")
    assert card.data.license == "mit" and {"snn", "neuromorphic"} <= set(card.data.tags)
    assert card.data.pipeline_tag == "image-classification"
    (found,) = card.data.eval_results
    assert (found.metric_type, found.metric_value) == ("accuracy", 0.75)
    assert card.data.model_name == "dense" and found.dataset_name == "unknown"
    assert hub.ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    text = card.text
    assert EVIL not in text and r"\<script\>alert" in text and "75.00%" in text
    assert "soul-deploy run net.event image.png" in text
    assert text.count("failed") == 1 and "some/where" not in text and "other.event" not in text


def test_what_a_card_is_not_made_of_is_refused(place: Path) -> None:
    for words, told in (
        (["net.event"], "0 model files given"),
        (["mine.safetensors", "mine.safetensors"], "2 model files given"),
        (["mine.safetensors", "--license", "My: own"], "is no name as the Hub spells them"),
        (["mine.safetensors", "-o", "mine.safetensors"], "the model itself"),
    ):
        result = run(*words)
        assert result.exit_code == 2 and told in result.stderr, result.stderr
    plain = run("mine.safetensors")
    assert plain.exit_code == 0 and "Nothing was given here" in plain.stdout
    assert "soul-deploy export event mine.safetensors" in plain.stdout
