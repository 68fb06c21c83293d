"""Run an event network on batches and streams. This script imports no PyTorch."""

import numpy as np

from soul_deploy import load_network, warm_up

print(warm_up("compact.event.safetensors").text())  # once, so that no run waits for a compilation
network = load_network("compact.event.safetensors", threads=2)
pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8)).astype(np.uint8)
print(network.run(pixels).argmax(axis=1))  # uint8 is normalised as the file says

recording = network.run_recorded(pixels)
print({name: spikes.shape for name, spikes in recording.spikes.items()})

for _ in range(network.time_steps):  # one step at a time, membranes stay
    scores = network.step(pixels)
network.reset()
print(scores.shape)
