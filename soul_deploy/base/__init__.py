"""The ground without PyTorch: errors, files, what is printed, memory limits, lazy imports."""

from typing import TYPE_CHECKING, Any

from soul_deploy.base.brief import brief as brief

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:

    def __getattr__(name: str) -> Any:
        # numpy takes a tenth of a second, which `soul-deploy --help` does without.
        if name != "Array":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import numpy.typing as npt

        return globals().setdefault("Array", npt.NDArray[Any])
