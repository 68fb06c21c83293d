"""What is raised when unstructured pruning cannot go on."""

from soul_deploy.base.errors import SoulDeployError
from soul_deploy.model.model import Model


class SearchStoppedError(SoulDeployError):
    """The search cannot go on; `last_good`: the hard model of the last epoch that was whole."""

    def __init__(self, message: str, last_good: Model | None) -> None:
        self.last_good = last_good
        super().__init__(message)
