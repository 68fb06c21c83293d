"""From layers to kernel calls: layer plans, buffers, partitions."""
