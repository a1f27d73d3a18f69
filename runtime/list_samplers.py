"""`runtime.sample --list-samplers`: the samplers there are, and what each one costs and takes."""

from __future__ import annotations

from typing import Any

from diffusion.samplers import SAMPLERS


def list_samplers() -> dict[str, Any]:
    """The report of `--list-samplers`."""
    lines = [f"{'sampler':14}{'order':>5}  {'keeps':>5}  {'noise':5}  {'options':9}  what it is"]
    for method in SAMPLERS.values():
        noise = "yes" if method.stochastic else "no"
        options = ", ".join(f"--{name.replace('_', '-')}" for name in method.options)
        lines.append(
            f"{method.name:14}{method.order:5}  {method.histories:5}  {noise:5}  {options:9}  {method.summary}"
        )
    samplers = [
        {
            "name": method.name,
            "order": method.order,
            "histories": method.histories,
            "stochastic": method.stochastic,
            "options": method.options,
            "summary": method.summary,
        }
        for method in SAMPLERS.values()
    ]
    return {"summary": "\n".join(lines), "samplers": samplers}
