"""Makes docs/networks.md: measures every tool in an environment of its own, and writes the page.

    python tests/networks/make_table.py [TOOL ...]

Without tools, all. What was measured stays in tests/networks/results, one file a tool; the page is
made of them. An environment holds the tool alone, without what it requires, beside the packages
of the environment that runs this script: so all tools run on one PyTorch.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "networks.md"
RESULTS = HERE / "results"
ENVIRONMENTS = ROOT / ".venv-networks"
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "spikingjelly_2": (),
    "spikingjelly_0": ("spikingjelly==0.0.0.0.14",),
    "clock_driven": ("spikingjelly==0.0.0.0.12",),
    "snntorch": (),
    "norse": ("norse==1.1.0",),
    "sinabs": ("sinabs==3.1.3", "pbr==7.1.3"),
    "rockpool": ("rockpool==3.1.0",),
    "nir_paper": (),
    "soul": (),
}
"""By the tool: what its environment has besides; nothing where this one has the tool."""
RECORDED = ("snntorch", "norse", "sinabs", "rockpool")
"""Tools whose NIR files are made by a recipe, `record_<tool>.py`."""
TITLES = {
    "traced": "taken by",
    "spikes": "spikes equal",
    "pruned": "pruned",
    "onnx": "ONNX",
    "event": "event",
    "nir": "NIR",
}
LONGEST = 110  # letters of a refusal in a cell


def python_of(tool: str) -> str:
    """The Python with that tool; its environment is made if there is none."""
    packages = PACKAGES[tool]
    if not packages:
        return sys.executable
    folder = ENVIRONMENTS / tool
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        base = f"import site; site.addsitedir({str(folder)!r})"
        said = [
            str(python),
            "-c",
            f"{base}; import sysconfig; print(sysconfig.get_path('purelib'))",
        ]
        place = subprocess.run(said, check=True, capture_output=True, text=True).stdout.strip()
        Path(place, "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        options = ["--quiet", "--no-deps", "--ignore-installed", "--no-compile"]
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *options]
        subprocess.run([*pip, *packages], check=True)
    return str(python)


def measure(tool: str, folder: Path) -> Path:
    """Run a tool's recipe if it has one, and measure; the results' file. Raises if a row fails."""
    places = (ROOT, HERE, ROOT / "tests" / "support")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "NETWORKS_FILES": str(folder),
    }
    files = folder / tool
    files.mkdir(parents=True, exist_ok=True)
    python = python_of(tool)
    if tool in RECORDED:
        recipe = str(HERE / f"record_{tool}.py")
        subprocess.run([python, recipe, str(files)], check=True, env=environment)
    # A file of another tool is read where nir is the version that this package asks for.
    measuring = sys.executable if tool in RECORDED else python
    found = folder / f"{tool}.json"
    command = [measuring, str(HERE / "measure.py"), tool, str(found)]
    subprocess.run(command, check=True, env=environment)
    return found


def keep(tool: str, found: Path) -> None:
    """What was measured, with today's date."""
    told = {**json.loads(found.read_text()), "date": date.today().isoformat()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{tool}.json").write_text(json.dumps(told, indent=1) + "\n")


def kept() -> dict[str, Any]:
    """The results of all tools that were measured, in the order of PACKAGES."""
    paths = {tool: RESULTS / f"{tool}.json" for tool in PACKAGES}
    return {tool: json.loads(p.read_text()) for tool, p in paths.items() if p.exists()}


def short(message: str) -> str:
    """The first clause of a message's first line."""
    line = re.sub(r" \(in module '([^']+)'[^;]*\)", r" in module \1", message.splitlines()[0])
    for end in ("; ", ". "):
        line = line.partition(end)[0]
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1].rstrip()}…"


def cell(row: Mapping[str, Any], column: str) -> str:
    text: str = row["cells"].get(column, "–")
    refusal = row["refusals"].get(column)
    if refusal is None:
        return text
    said = short(refusal).replace("|", "\\|")
    return f"refused: {said}" if text == "refused" else text


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["network", "neuron", *TITLES.values()]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        lines.append([row["network"], row["neuron"], *(cell(row, name) for name in TITLES)])
    return [f"| {' | '.join(line)} |" for line in lines]


def summary(found: Mapping[str, Any]) -> list[str]:
    head = [
        "tool",
        "rows",
        "taken",
        "equal to the bit",
        "explained",
        "pruned",
        "ONNX",
        "event",
        "NIR",
        "measured",
    ]
    lines = [head, ["---"] * len(head)]
    for told in found.values():
        done = Counter(
            name for row in told["rows"] for name, text in row["cells"].items() if text != "refused"
        )
        equal = sum(row["cells"].get("spikes") == "yes" for row in told["rows"])
        explained = sum("explained" in row["cells"].get("spikes", "") for row in told["rows"])
        numbers = [len(told["rows"]), done["traced"], equal, explained]
        numbers += [done[name] for name in ("pruned", "onnx", "event", "nir")]
        lines.append([told["tool"], *map(str, numbers), told["date"]])
    return [f"| {' | '.join(line)} |" for line in lines]


def page(found: Mapping[str, Any]) -> str:
    """The document, of what was measured."""
    parts = [INTRODUCTION.format(rows=sum(len(told["rows"]) for told in found.values()))]
    parts.append("\n".join(summary(found)))
    for told in found.values():
        parts += [f"## {told['tool']}", "\n".join(table(told["rows"]))]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
# Networks of other tools

What becomes of the networks that people have: {rows} of them, each run by its own tool and by us on
the same input, on which every population fires. `make networks` measures all of it and writes this
page (tests/networks/make_table.py; the networks are in `tests/networks/of_*.py`); `make test`
measures some rows again.

- *taken by*: `from_torch` of the tool's module, `import nir` of a file that the tool wrote,
  `import zoo` of weights under Soul's names, `trace` of our module on the tool's recorded currents.
- *spikes equal*: what every population sends at every step, against the tool's own. *yes*: to the
  bit; *n explained*: n neurons differ, each by a membrane that rounding takes over its threshold,
  by the rule of `verify`; *no*: why not.
- *pruned*: a short pass of `prune structured` and one of `prune unstructured`, each compacted, and
  verified as an event network. Where one method alone takes the network, its name.
- *ONNX*, *event*, *NIR*: exported and verified by the three checks; NIR is read back.
- *refused*: how the message begins. It names the place and says what to do."""


def main(*tools: str) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        for tool in tools or PACKAGES:
            keep(tool, measure(tool, Path(folder)))
    PAGE.write_text(page(kept()))


if __name__ == "__main__":
    main(*sys.argv[1:])
