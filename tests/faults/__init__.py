"""Kills and failing disks at every system call with which a command writes."""
