"""`nir_trial` as the fuzzer runs it: how much memory it took is left in a file."""

import os
from pathlib import Path

import peak

from soul_deploy.export.nir.package import main

if __name__ == "__main__":
    before = peak.reset()
    try:
        main()
    finally:
        Path(os.environ[peak.CHILD]).write_text(str(peak.peak() - before))
