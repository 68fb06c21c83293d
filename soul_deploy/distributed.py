"""Several processes train one network: what torchrun started, joined into a `Group`.

Every process holds the whole network and takes its part of each batch; sums over the processes make
gradients, scores and counts those of the whole batch. What is decided from them (masks, lambda, the
best epoch) is then the same everywhere without being sent, and `Group.agree` checks that it is.

The order of samples is drawn once for all from the seed, and each process takes its part of every
batch. torch.utils.data.DistributedSampler would repeat samples until all processes have equally
many; the sums would then not be those of one process.

`current` reads torch.distributed's own default group: there is one per process. Without one, a
group of one is returned, whose sums are the values themselves: the loops have one path.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from soul_deploy.base.errors import DistributedError, UsageError
from soul_deploy.nn.graph_module import GraphModule

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(hours=12)
"""How long the others wait while the first process downloads a data set."""
DIGEST_BYTES = 32
CPU = torch.device("cpu")
Made = TypeVar("Made")


@dataclass(frozen=True)
class ProcessShare:
    """A process's samples of a batch, and their share in the batch's mean."""

    index: slice
    weight: float


@dataclass(frozen=True)
class Group:
    """The processes of one job, seen from one of them. `rank` counts from 0; rank 0 is the main."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def part(self, samples: int) -> ProcessShare:
        """This process's part of a batch: every world_size-th sample, from its rank on.

        A batch with less than two samples a process is not split: all compute the whole of it, each
        with the weight 1/world_size, since batch norm cannot learn from one sample. The weights of
        all parts sum to 1.
        """
        if self.world_size == 1:
            return ProcessShare(slice(None), 1.0)
        if samples < 2 * self.world_size:
            return ProcessShare(slice(None), 1 / self.world_size)
        index = slice(self.rank, None, self.world_size)
        return ProcessShare(index, len(range(self.rank, samples, self.world_size)) / samples)

    def mine(self, items: Sequence[Made]) -> Sequence[Made]:
        """Every world_size-th item, from the rank on; none of the others' items."""
        return items[self.rank :: self.world_size]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, in float64."""
        return self._reduced(values, torch.float64)

    def total(self, count: int) -> int:
        """The exact sum of integers over the processes."""
        return self._reduced([count], torch.int64)[0]

    def largest(self, number: int) -> int:
        """The largest of the processes' integers."""
        return self._reduced([number], torch.int64, dist.ReduceOp.MAX)[0]

    def _reduced(
        self, values: Sequence[Made], dtype: torch.dtype, operation: Any = dist.ReduceOp.SUM
    ) -> list[Made]:
        if self.world_size == 1:
            return list(values)
        found = torch.tensor(values, dtype=dtype, device=self.device)
        self._reduce(found, operation)
        reduced: list[Made] = found.tolist()
        return reduced

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in one exchange.

        All processes must give tensors of the same sizes in the same order. The result is the same
        to the bit in all of them.
        """
        each = list(tensors)
        if self.world_size == 1 or not each:
            return
        with torch.no_grad():
            flat = torch.cat([tensor.detach().flatten() for tensor in each]).to(self.device)
            self._reduce(flat)
            sizes = [tensor.numel() for tensor in each]
            for tensor, new in zip(each, torch.split(flat, sizes), strict=True):
                tensor.copy_(new.view_as(tensor))

    def add_up_learning(self, module: nn.Module, others: Iterable[Tensor] = ()) -> None:
        """Sum the gradients of `module` and `others`; average batch norms' running statistics.

        With gradients of weighted losses (`Part.weight`), the sum is the gradient of the whole
        batch's loss. Statistics that are frozen stay as they are.
        """
        if self.world_size == 1:
            return
        moving = running_statistics(module)
        for statistic in moving:
            statistic.div_(self.world_size)
        self.add_up([*gradients([*module.parameters(), *others]), *moving])

    def agree(self, when: str, parts: Mapping[str, Iterable[Tensor]]) -> None:
        """Raise DistributedError, in all processes, if their `parts` are not equal to the bit.

        when: where in the work it is, for the message; it names what differs, and the ranks.
        """
        if self.world_size == 1:
            return
        digests = b"".join(digest_of(tensors) for tensors in parts.values())
        own = torch.frombuffer(bytearray(digests), dtype=torch.uint8).to(self.device)
        all_of_them = [torch.empty_like(own) for _ in range(self.world_size)]
        with self._exchange():
            dist.all_gather(all_of_them, own)
        found = [bytes(given.cpu().tolist()) for given in all_of_them]
        for i, name in enumerate(parts):
            ranks = odd_ones([d[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES] for d in found])
            if ranks:
                raise DistributedError(
                    f"{when}: {name} of rank {', '.join(map(str, ranks))} differ from those of "
                    f"the other ranks, of {self.world_size}; all processes need the same files, "
                    "options, software and kind of processor. Start again with --resume auto"
                )

    def wait(self) -> None:
        """Until all processes are here."""
        self.total(0)

    def _reduce(self, tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
        with self._exchange():
            dist.all_reduce(tensor, operation)

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise DistributedError(
                f"another of the {self.world_size} processes was ended, failed or hangs, and the "
                f"job cannot go on without it ({_first_line(error)}). Which one, and why, is in "
                "its own message or in torchrun's summary; start again with --resume auto"
            ) from error


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of those parameters that have one."""
    return [p.grad for p in parameters if p.grad is not None]


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances of the batch norms that are learning."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    both = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
    return [statistic for statistic in both if statistic is not None]


def digest_of(tensors: Iterable[Tensor]) -> bytes:
    """sha256 over types, shapes and values."""
    sha = hashlib.sha256()
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        sha.update(f"{values.dtype} {tuple(values.shape)} ".encode())
        sha.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.digest()


def odd_ones(given: Sequence[bytes]) -> tuple[int, ...]:
    """Positions of what is not the most frequent value (of equally frequent ones, the first)."""
    usual, _ = Counter(given).most_common(1)[0]
    return tuple(i for i, value in enumerate(given) if value != usual)


def joined() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def current() -> Group:
    """The group that this process has joined, or a group of one."""
    if not joined():
        return Group()
    nccl = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else CPU
    return Group(dist.get_rank(), dist.get_world_size(), device)


def assert_ranks_agree(
    when: str, module: GraphModule, place: Sequence[float], masks: Iterable[Tensor] = ()
) -> None:
    """Raise DistributedError, in all processes, if not all of them hold the same network.

    place: numbers that say how far each has come; masks: others than the module's.
    """
    keeps = [mask.keep for mask in module.channel_masks.values()]
    parts: dict[str, Iterable[Tensor]] = {
        "place": [torch.tensor(place, dtype=torch.float64)],
        "masks": [*keeps, *masks],
        "weights": module.state_dict().values(),
    }
    current().agree(when, parts)


def assert_ranks_start_alike(settings: Mapping[str, Any], checkpoint: str) -> None:
    """Raise DistributedError, in all processes, if they do not begin the same run at one place.

    settings: what was asked for, the data's sha256 among it. checkpoint: what the run goes on from;
    empty: nothing.
    """
    texts = {
        "settings and data": json.dumps(settings, sort_keys=True, default=str),
        "the checkpoint to go on from": checkpoint,
    }
    parts = {
        name: [torch.tensor(list(text.encode()), dtype=torch.uint8)] for name, text in texts.items()
    }
    current().agree("at the start", parts)


def started_by_torchrun(environment: Mapping[str, str]) -> bool:
    """Whether there are other processes of this job. Raises UsageError for half a description."""
    world = environment.get("WORLD_SIZE")
    if world is None or world == "1":
        return False
    missing = [name for name in TORCHRUN if name not in environment]
    if missing:
        raise UsageError(
            f"WORLD_SIZE={world} is set, but {', '.join(missing)} is not; start several processes "
            "with torchrun, which sets them all, or unset WORLD_SIZE for a single one"
        )
    return True


def join(kind: str, patience: float) -> torch.device:
    """Join the processes that torchrun started, if it did; returns the device to work on.

    kind: "cpu" (the processes then exchange by gloo) or "cuda" (by NCCL, a GPU each). patience:
    seconds that an exchange waits for the others. Raises UsageError, or DistributedError if the
    others cannot be reached.
    """
    if not started_by_torchrun(os.environ):
        return torch.device(kind)
    if kind == "cuda":
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise UsageError(
                f"torchrun started process {number + 1} on this machine, which has {gpus} GPUs; "
                f"give torchrun --nproc-per-node={gpus}, or train with --device cpu"
            )
        torch.cuda.set_device(number)
    backend, timeout = "nccl" if kind == "cuda" else "gloo", timedelta(seconds=patience)
    try:
        store, rank, world = next(iter(rendezvous("env://", timeout=timeout)))
        store.set_timeout(timeout)
        place = PrefixStore(attempt(os.environ), store)
        dist.init_process_group(backend, store=place, rank=rank, world_size=world, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise DistributedError(
            f"cannot reach the other {int(os.environ['WORLD_SIZE']) - 1} processes at {address} "
            f"({_first_line(error)}); check that the nodes see each other (with several "
            "network interfaces, name one in GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME)"
        ) from error
    return current().device


def attempt(environment: Mapping[str, str]) -> str:
    """A name for this start of the job, the same in all its processes.

    torchrun's agent keeps one store over all restarts, and with it the addresses of processes that
    have died (https://github.com/pytorch/pytorch/issues/135712, still so in 2.14): the next start
    would wait for these. On one machine the number of restarts tells the starts apart; on several,
    each agent counts its own, and `restart_advice` says what to set.
    """
    if environment.get("GROUP_WORLD_SIZE", "1") != "1":
        return "start"
    return f"start {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def restart_advice(environment: Mapping[str, str]) -> str | None:
    """What to set so that restarts work on several machines; None: nothing is missing."""
    several = environment.get("GROUP_WORLD_SIZE", "1") != "1"
    restarts = environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if several and restarts and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return (
            "--max-restarts on several machines: after a restart, torchrun hands out the addresses "
            "of dead processes; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every node"
        )
    return None


def main_first(make: Callable[[bool], Made]) -> Made:
    """make(True) in the main process; when it is done, make(False) in the others."""
    group = current()
    if group.world_size == 1:
        return make(True)
    patient: Any = dist.new_group(timeout=PATIENCE, backend="gloo")
    made = [make(True)] if group.is_main else []
    with group._exchange():
        dist.all_reduce(torch.zeros(1), group=patient)
    return made[0] if made else make(False)


def hand_over() -> bool:
    """End the group, once all are here. True in the main process, which goes on alone."""
    group = current()
    if group.world_size > 1:
        group.wait()
        dist.destroy_process_group()
    return group.is_main


def shared_batch_norm(module: nn.Module) -> None:
    """On GPUs, let batch norms compute their statistics over all processes, in place.

    torch.nn.SyncBatchNorm exists on GPUs only. With gloo each process normalises by the statistics
    of its own part of a batch.
    """
    group = current()
    if group.world_size > 1 and group.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].partition(". This is typically")[0]  # gloo's advice to its authors
