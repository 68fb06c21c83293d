"""`benchmarks/quality.py`: its images, its networks, and which rows it makes."""

import json
from pathlib import Path

import pytest
import torch
from quality import STEPS, averaged, groups, images, main, small_vgg

from soul_deploy.data.datasets import Data, Split
from soul_deploy.prune.comparison_table import Comparison, Run


def test_images_are_padded_and_averaged() -> None:
    pixels = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    pixels[0, 0, 0, 0], pixels[0, 0, 27, 26:] = 200, torch.tensor([100, 50], dtype=torch.uint8)
    labels = torch.arange(20) % 10
    made = averaged(Split(pixels, labels))
    assert made.images.shape == (20, 1, 16, 16) and made.images.dtype == torch.uint8
    assert made.images[0].nonzero().tolist() == [[0, 1, 1], [0, 14, 14]]
    assert made.images[0, 0, 1, 1] == 50 and made.images[0, 0, 14, 14] == 38  # 37.5 to even
    assert averaged(Split(pixels, labels), 10).labels.sort().values.tolist() == list(range(10))


def test_the_vgg_has_the_stated_channels() -> None:
    graph = small_vgg(0).graph
    widths = [graph.shapes[node.name][0] for node in graph.populations]
    assert widths == [24, 48, 48, 96, 96, 96, 96, 96] and sum(widths) == 600
    assert graph.time_steps == STEPS
    first, again = small_vgg(1).state, small_vgg(1).state
    assert all((first[name] == again[name]).all() for name in first)


def test_a_missing_data_set_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="apt-get download dataset-fashion-mnist"):
        images(tmp_path)


def test_a_part_prints_its_table_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        noise = torch.randint(0, 256, (count, 1, 16, 16), generator=random)
        return Split(noise.to(torch.uint8), torch.arange(count) % 10)

    few = Data("few", split(40), split(20), split(20), tuple("0123456789"), None)
    monkeypatch.setattr("quality.images", lambda folder: few)
    for name, epochs in (("CONV_EPOCHS", 1), ("SEARCH_EPOCHS", 1), ("FINETUNE_EPOCHS", 1)):
        monkeypatch.setattr(f"quality.{name}", epochs)
    out = ["--seeds", "2", "-o", str(tmp_path)]
    assert main(["scratch", "--entries", "lambda=1e-09", *out]) == 0
    printed = capsys.readouterr().out
    assert "lambda=1e-09" in printed and "5e-09" not in printed and "dense" in printed
    runs = sorted(path.name for path in (tmp_path / "scratch").glob("*.json"))
    assert runs == [f"{name}_{seed}.json" for name in ("dense", "lambda=1e-09") for seed in (0, 1)]
    document = json.loads((tmp_path / "scratch.json").read_text())
    assert document["part"] == "scratch" and len(document["runs"]) == 4
    stamps = [path.stat().st_mtime_ns for path in (tmp_path / "scratch").iterdir()]
    assert main(["scratch", "--entries", "lambda=1e-09", *out]) == 0
    assert [path.stat().st_mtime_ns for path in (tmp_path / "scratch").iterdir()] == stamps
    with pytest.raises(SystemExit, match="unknown entry 'snip'; valid: lambda=1e-09"):
        main(["scratch", "--entries", "snip", *out])


def test_differences_are_taken_within_a_budget() -> None:
    names = ("l1:0.5:cubic", "l1:0.7:cubic", "random:0.5:cubic", "random:0.7:cubic")
    runs = tuple(Run(name, 0, 0.1 * i, 1.0, 1, 1) for i, name in enumerate(names, 1))
    half, more = groups(Comparison(names, (0,), runs))
    assert half.entries == names[::2] and more.entries == names[1::2]
    (apart,) = more.differences()
    assert apart.entry == "random:0.7:cubic" and apart.accuracy.mean == pytest.approx(0.2)
    (whole,) = groups(Comparison(("search", "random"), (0,), ()))
    assert whole.entries == ("search", "random")
