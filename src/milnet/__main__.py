"""`python -m milnet` is the command `milnet`."""

from milnet.cli import main

main()
