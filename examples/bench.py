"""Times of a model's engines side by side; what is missing is exported."""

from soul_deploy import BenchConfig, bench

quick = BenchConfig(engines=("pytorch-dense", "event"), fresh=False)
print(bench(["dense.safetensors", "compact.safetensors"], config=quick).text())
