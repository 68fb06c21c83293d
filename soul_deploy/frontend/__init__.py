"""From somebody's `nn.Module` to a `SpikingGraph`: tracing, and what each module means."""
