"""`python -m soul_deploy`, as torchrun starts it."""

from soul_deploy.cli import main

main()
