"""`python -m nas.cli`: the command line without its script."""

from nas.cli.main import main

main()
