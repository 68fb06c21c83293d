"""Reading an HDF5 file, on its standard input, in a process of its own (`python -m`, its name).

The HDF5 library loops for ever, or crashes, on some damaged files (a heap of texts with an object
of size 0 is one). What a process can read is then read again by the caller.
"""

import resource
import subprocess
import sys

from soul_deploy.base import errors, files
from soul_deploy.export.nir.package import check_texts, nir_package

SECONDS = 20.0
SECONDS_PER_BYTE = 1e-7
PROGRAM: tuple[str, ...] = ("-m", __name__)  # what Python runs
MEMORY = 4 << 30  # bytes of address space, besides 64 times the file


def try_reading(file: files.File, seconds: float | None = None) -> None:
    """Raise FileFormatError unless another process can read the NIR file in time.

    seconds: until it is given up; None: 20, and a second more per 10 MB.
    """
    path = files.path_of(file)
    command = [sys.executable, *PROGRAM, str(path)]
    try:
        with files.opened(file) as source, source.again() as stream:
            limit = SECONDS + SECONDS_PER_BYTE * source.size if seconds is None else seconds
            # Its standard input, so that it reads this very file, whatever is at the path by then.
            done = subprocess.run(
                command, stdin=stream, capture_output=True, text=True, timeout=limit, check=False
            )
    except subprocess.TimeoutExpired as error:
        raise errors.FileFormatError(
            f"{path} is not an intact NIR file: the HDF5 library did not finish within {limit:g} s"
        ) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise errors.FileFormatError(f"{path} is not an intact NIR file ({said[-1]})")


def main() -> None:
    """Read the file on standard input, its texts first, and nothing else."""
    with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
        source = files.OpenFile(sys.argv[1], stream)
        most = MEMORY + 64 * source.size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        check_texts(source)
        nir_package().read(stream, type_check=False)


if __name__ == "__main__":
    main()
