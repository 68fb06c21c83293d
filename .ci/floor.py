"""Print the minimum versions that setup.cfg promises, as constraints for pip.

Arguments: names of extras whose requirements are meant too; without, those of the product alone.
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

setup = ConfigParser()
setup.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
texts = [setup["options"]["install_requires"]]
texts += [setup["options.extras_require"][name] for name in sys.argv[1:]]
for line in "\n".join(texts).splitlines():
    requirement = line.partition("#")[0].strip()
    if not requirement:
        continue
    found = re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)
    if found is None:
        sys.exit(f"setup.cfg: {requirement!r} names no minimum; write name>=version")
    print(f"{found[1]}=={found[2]}")
