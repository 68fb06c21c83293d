"""Numeric constants of the kernels."""

FASTMATH = False
"""Never on: a reordered or contracted sum can land on the other side of a threshold."""

NEURON_BLOCK = 1024
"""Neurons that a neuron update carries through all steps at once; their state stays in L1."""

SOURCE_BLOCK = 64
"""Presynaptic neurons of a matrix whose rows are used at all steps before the next ones."""

LANE_BLOCK = 256
"""As NEURON_BLOCK, for currents whose steps stand side by side and are transposed first."""

SPIKE_BLOCK = 1024
"""Presynaptic neurons of a matrix of which those that fire at any step are listed at once."""

PREFETCH_ROWS = 4
"""Rows of a matrix whose cache lines are prefetched before they are needed."""
