"""Train a small network on scikit-learn's digits, and save it. Run this one first."""

from pathlib import Path

import torch

from soul_deploy import Checkpoints, NeuronSpec, TrainConfig, create, save, train

torch.manual_seed(0)  # the weights that it begins with
model = create(
    "spikingvgg5",  # or "package.module:factory"
    input_shape=(1, 8, 8),
    classes=10,
    time_steps=2,
    neuron=NeuronSpec("lif", tau=2.0),
    hidden=128,
)
result = train(
    model,
    "digits",  # or (images, labels), a torch Dataset, {"train": …, "validation": …, "test": …}
    TrainConfig(epochs=4, learning_rate=0.002),
    on_epoch=lambda epoch: print(f"{epoch.epoch}: {epoch.validation_accuracy:.1%}"),
    checkpoints=Checkpoints(Path("checkpoints"), resume=True),  # goes on after a kill
)
print(f"test accuracy {result.test_accuracy:.1%}")
save(result.model, "dense.safetensors")
