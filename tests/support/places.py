"""Where the tests and what they read stand."""

import os
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
FIXTURES = TESTS / "fixtures"
COUNTEREXAMPLES = TESTS / "counterexamples"
PATH = os.pathsep.join(map(str, (ROOT, SUPPORT, TESTS / "runtime" / "format")))
"""PYTHONPATH of processes that tests start: the tree, helpers, examples of event files."""
