"""What networks do on chosen samples: counts, and the spikes of a few of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from soul_deploy.analysis import measure
from soul_deploy.base import Array, brief, errors, progress
from soul_deploy.data.chosen import Chosen
from soul_deploy.reporting.fields import Fields
from soul_deploy.reporting.networks import Network
from soul_deploy.reporting.readers import counted


@brief
@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One sample in one network.

    image: as the network takes it, (C, H, W) or (T, C, H, W), or another shape. spikes: bool (T,
    C, H, W) or (T, N), by population. scores: (classes,). truth: the sample's class, if known.
    """

    label: str
    sample: int
    image: Array
    spikes: Mapping[str, Array]
    scores: Array
    truth: int | None
    classes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The class that the network says, and whether that is right."""
        said = int(self.scores.argmax())
        if self.truth is None:
            return f"says {self._name(said)}"
        if said == self.truth:
            return f"says {self._name(said)}, right"
        return f"says {self._name(said)}, wrong: it is {self._name(self.truth)}"

    def _name(self, number: int) -> str:
        known = number < len(self.classes)
        return self.classes[number] if known else str(number)


def run_on(
    networks: Sequence[Network], samples: Mapping[str, Chosen], shown: int
) -> tuple[tuple[Network, ...], tuple[Recorded, ...], tuple[str, ...]]:
    """Networks with counts on the samples, spikes of the first `shown`, and what was remarked.

    samples: by label. A network without a model file stays as it is. Rates and shares are of the
    first network's neurons, where the others came from it, else of their own.
    """
    done: list[Network] = []
    recorded: list[Recorded] = []
    remarks: list[str] = []
    original: measure.Original | None = None
    for network in networks:
        model = network.model
        if model is None:
            done.append(network)
            continue
        progress.status(f"report: running {network.path}")
        chosen = samples[network.label]
        mine = measure.original_of(network.label, model)
        original = original or mine
        try:
            count = _count(network, chosen, original)
        except errors.UsageError:
            remarks.append(f"{network.label}: not made of {original.name}; its rates are its own")
            count = _count(network, chosen, mine)
        done.append(count)
        recorded += _record(network, chosen, shown)
    return tuple(done), tuple(recorded), tuple(dict.fromkeys(remarks))


def _count(network: Network, chosen: Chosen, original: measure.Original) -> Network:
    assert network.model is not None
    found = measure.count(
        network.model,
        chosen.images,
        labels=chosen.labels,
        original=original,
        measured=measure.Measured(
            path=network.path,
            sha256=network.sha256,
            artifact_bytes=network.size or 0,
            data={"name": chosen.name, "split": chosen.split},
        ),
    )
    document = json.loads(json.dumps(found.to_dict()))
    count = counted(Fields(network.path, document))
    if network.accuracy is not None or count.accuracy is None:
        return replace(network, counted=count)
    told = f"{count.samples} images, {count.data}"
    return replace(network, counted=count, accuracy=count.accuracy, accuracy_of=told)


@torch.no_grad()
def _record(network: Network, chosen: Chosen, shown: int) -> list[Recorded]:
    assert network.model is not None
    module = network.model.module()
    axis = 0 if module.as_signal(chosen.images).static else 1
    images = chosen.images.narrow(axis, 0, min(shown, chosen.images.shape[axis]))
    if not images.shape[axis]:
        return []
    found = module.record(images)
    return [
        Recorded(
            label=network.label,
            sample=number,
            image=images.select(axis, number).numpy(),
            spikes={name: sent[:, number].numpy() for name, sent in found.spikes.items()},
            scores=found.logits[number].numpy(),
            truth=None if chosen.labels is None else int(chosen.labels[number]),
            classes=network.model.info.classes,
        )
        for number in range(images.shape[axis])
    ]
