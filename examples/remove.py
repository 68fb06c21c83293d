"""What can go from a masked network; the network without it; that both are the same."""

from soul_deploy import as_data, compare, load, plan_removal, remove

masked = load("masked.safetensors")
plan = plan_removal(masked, round_to=4)
print(plan.text())
compact = remove(masked, plan)
same = compare(masked, compact, as_data("digits"), plan.kept_channels)
print(same.text())
