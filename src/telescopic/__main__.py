"""`python -m telescopic`, which `torchrun -m telescopic` also needs."""

from telescopic.cli import main

main()
