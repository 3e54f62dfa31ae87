"""`python -m terralapse` is the `terralapse` command."""

from terralapse.cli import main

main()
