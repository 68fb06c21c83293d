"""All commands: where each is found when it is asked for, and what help says of it."""

# command -> (dotted name of the click command, help line). Nothing here imports a command.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("soul_deploy.demo:demo", "Train, prune, remove, export and verify on real digits."),
    "train": ("soul_deploy.train_cli:train", "Train a spiking network."),
    "verify": ("soul_deploy.export.cli:verify", "Prove that an exported file equals its model."),
    "energy": (
        "soul_deploy.export.energy_cli:energy",
        "Count operations exactly, estimate their energy.",
    ),
    "inspect": ("soul_deploy.runtime.cli:inspect", "Print what is in a model, event or ONNX file."),
    "run": ("soul_deploy.runtime.cli:run", "Run an event network on images or a .npy file."),
}
GROUPS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "prune": (
        "Decide what goes, then remove it.",
        {
            "structured": (
                "soul_deploy.prune.cli:structured",
                "Prune channels by spiking channel activity (Li et al., ICML 2024).",
            ),
            "unstructured": (
                "soul_deploy.prune.unstructured_cli:unstructured",
                "Prune weights and neurons (Shi et al., ICLR 2024).",
            ),
            "compact": (
                "soul_deploy.prune.compact_cli:compact",
                "Remove the masked or zeroed channels of a model file.",
            ),
        },
    ),
    "export": (
        "Write a model as ONNX, an event network or NIR, and check it.",
        {
            "onnx": ("soul_deploy.export.cli:onnx", "Write an ONNX file with all steps inside."),
            "event": (
                "soul_deploy.export.cli:event",
                "Write an event network, run without PyTorch.",
            ),
            "nir": (
                "soul_deploy.export.nir_cli:export_command",
                "Write a NIR graph for other toolkits and neuromorphic chips.",
            ),
        },
    ),
    "import": (
        "Read a network that another tool wrote.",
        {
            "nir": (
                "soul_deploy.export.nir_cli:import_command",
                "Read a NIR graph as a model file.",
            ),
            "torch": (
                "soul_deploy.import_cli:import_command",
                "Make a model file of a PyTorch network of yours.",
            ),
        },
    ),
    "bench": (
        "Time engines side by side.",
        {
            "sparse": (
                "soul_deploy.runtime.bench_cli:sparse",
                "PyTorch, ONNX Runtime, event runtime.",
            )
        },
    ),
}
