"""The console script `ddpm-rt`, and `python -m ddpm_rt`. Only the standard library is imported here."""
