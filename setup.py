"""Everything stands in setup.cfg but the text of the package's page, which is README.md rendered.

A package index shows no file of the repository: relative links become absolute ones below
`project_urls: Source`, and as long as there is none, the names of the files, which are in the
source distribution. Pictures go with them.
"""

import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def source() -> str | None:
    """Where the repository can be read, with a slash at its end."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["metadata"].get("project_urls", "").strip().splitlines()
    urls = {label.strip(): url.strip() for label, _, url in (line.partition("=") for line in lines)}
    found = urls.get("Source")
    return None if found is None else found.rstrip("/") + "/"


def rendered(markdown: str, base: str | None) -> str:
    """The text with links that work outside the repository."""

    def linked(match: re.Match[str]) -> str:
        picture, text, path = match.groups()
        if base is not None:
            return f"{picture}[{text}]({base}{path})"
        if picture:
            return ""
        file = path.partition("#")[0]
        return text if file in text else f"{text} (`{file}`)"

    return LINK.sub(linked, markdown)


if __name__ == "__main__":
    from setuptools import setup

    setup(
        long_description=rendered((ROOT / "README.md").read_text(encoding="utf-8"), source()),
        long_description_content_type="text/markdown",
    )
