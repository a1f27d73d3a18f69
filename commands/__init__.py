"""What every command line of the project shares: exit codes, `--json`, `--debug`, progress, whole files."""
