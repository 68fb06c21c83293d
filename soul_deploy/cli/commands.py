"""All commands: where each is found when it is asked for, and what help says of it."""

# command -> (dotted name of the click command, help line). Nothing here imports a command.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "soul_deploy.cli.demo:demo",
        "Train, prune, remove, export and verify on real digits.",
    ),
    "train": ("soul_deploy.cli.train:train", "Train a spiking network."),
    "verify": ("soul_deploy.cli.export:verify", "Prove that an exported file equals its model."),
    "energy": ("soul_deploy.cli.energy:energy", "Count operations exactly, estimate their energy."),
    "inspect": ("soul_deploy.cli.run:inspect", "Print what is in a model, event or ONNX file."),
    "run": ("soul_deploy.cli.run:run", "Run an event network on images or a .npy file."),
}
GROUPS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "prune": (
        "Decide what goes, then remove it.",
        {
            "structured": (
                "soul_deploy.cli.prune_structured:structured",
                "Prune channels by spiking channel activity (Li et al., ICML 2024).",
            ),
            "unstructured": (
                "soul_deploy.cli.prune_unstructured:unstructured",
                "Prune weights and neurons (Shi et al., ICLR 2024).",
            ),
            "compact": (
                "soul_deploy.cli.prune_compact:compact",
                "Remove the masked or zeroed channels of a model file.",
            ),
        },
    ),
    "export": (
        "Write a model as ONNX, an event network or NIR, and check it.",
        {
            "onnx": ("soul_deploy.cli.export:onnx", "Write an ONNX file with all steps inside."),
            "event": (
                "soul_deploy.cli.export:event",
                "Write an event network, run without PyTorch.",
            ),
            "nir": (
                "soul_deploy.cli.nir:export_command",
                "Write a NIR graph for other toolkits and neuromorphic chips.",
            ),
        },
    ),
    "import": (
        "Read a network that another tool wrote.",
        {
            "nir": ("soul_deploy.cli.nir:import_command", "Read a NIR graph as a model file."),
            "torch": (
                "soul_deploy.cli.import_torch:import_command",
                "Make a model file of a PyTorch network of yours.",
            ),
        },
    ),
    "bench": (
        "Time engines side by side.",
        {"sparse": ("soul_deploy.cli.bench:sparse", "PyTorch, ONNX Runtime, event runtime.")},
    ),
}
