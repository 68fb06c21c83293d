"""A report as one HTML page: jinja2's template, in which every value of a file is escaped."""

import base64
import hashlib
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from soul_deploy.base import errors
from soul_deploy.base.tables import format_cell
from soul_deploy.base.terminal import one_line
from soul_deploy.reporting import content, sections, svg

if TYPE_CHECKING:
    from soul_deploy.reporting.report import Report

LARGEST = 5_000_000  # bytes of a page


def html(report: "Report") -> str:
    """The whole page. Raises LimitError where it would have LARGEST bytes or more."""
    here = files("soul_deploy.reporting")
    css, script, text = (
        (here / name).read_text("utf-8") for name in ("page.css", "page.js", "page.html.j2")
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["cell"] = lambda value: one_line(format_cell(value))
    with svg.style():
        parts = sections.sections_of(report)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.from_string(text).render(
        report=report,
        sections=parts,
        words=content.wordy,
        css=Markup(css),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        version=version("soul-deploy"),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    size = len(page.encode())
    if size >= LARGEST:
        raise errors.LimitError(
            f"the report would have {size:,} bytes, and has to stay under {LARGEST:,}; give fewer "
            "files, or show fewer samples (--shown)"
        )
    return page
