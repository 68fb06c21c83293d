"""What `make docs` does besides plain Markdown.

A link to a file outside docs/ becomes the file's name; readers find it in a clone. The reference of
commands lists all: mkdocs-click does not ask for those that are loaded when they are called.
"""

import re
from pathlib import Path
from typing import Any

import click

from soul_deploy.cli.main import root

LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Raises FileNotFoundError if there is no such file."""
    del files
    docs = Path(config["docs_dir"]).resolve()

    def named(link: re.Match[str]) -> str:
        path = (docs / page.file.src_uri).parent.joinpath(link[2]).resolve()
        if path.is_relative_to(docs):
            return link[0]
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links {link[2]}, which does not exist")
        name = path.relative_to(docs.parent)
        return f"`{name}`" if link[1] in (str(name), path.name) else f"{link[1]} (`{name}`)"

    return LINK.sub(named, markdown)


def on_config(config: Any) -> Any:
    """Load every command."""
    context = click.Context(root)
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None, name
        root.add_command(command, name)
    return config
