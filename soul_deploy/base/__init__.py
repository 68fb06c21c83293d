"""The ground without PyTorch: errors, files, what is printed, memory limits, lazy imports."""

from typing import TYPE_CHECKING, Any

from soul_deploy.base.brief import brief as brief

if TYPE_CHECKING:  # numpy takes a tenth of a second, which `soul-deploy --help` does without
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:
    Array = Any
