"""`python -m modeling_rsmoe.cli` is `rsmoe`: launchers such as `accelerate launch -m` start it so."""

from . import main


main()
