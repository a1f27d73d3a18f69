"""What every command line of the project shares: exit codes, `--json`, `--debug`, progress, whole files.

Everything of ours that imports an engine imports this first, so that is where engines are told to stay off the network.
"""

from commands.telemetry import send_no_telemetry

send_no_telemetry()
