"""`bench sparse --reference`: a network that anyone can make again, without training."""

from dataclasses import dataclass
from pathlib import Path

from soul_deploy.base.lazy import load_object


@dataclass(frozen=True)
class ReferenceRequest:
    """The reference network as asked for; None: its default (`analysis.reference_network`)."""

    density: float | None
    connectivity: float | None
    rate: float | None
    time_step: int | None
    seed: int

    def write(self, folder: Path, images: int) -> tuple[Path, Path]:
        """Its model file and `images` images for it, in `folder`. Raises UsageError."""
        purpose = "making the reference network"
        reference = load_object("soul_deploy.analysis.reference_network:ReferenceNetwork", purpose)
        write = load_object("soul_deploy.analysis.reference_network:write_reference", purpose)
        density = 1.0 if self.density is None and self.connectivity is None else self.density
        wanted = reference(
            density=density,
            connectivity=self.connectivity,
            rate=0.08 if self.rate is None else self.rate,
            time_steps=4 if self.time_step is None else self.time_step,
            seed=self.seed,
        )
        paths: tuple[Path, Path] = write(folder, images, wanted)
        return paths
