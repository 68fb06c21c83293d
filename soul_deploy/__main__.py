"""`python -m soul_deploy`, as torchrun starts it."""

from soul_deploy.cli.main import main

main()
