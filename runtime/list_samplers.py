"""`runtime.sample --list-samplers`: the samplers there are, and what each one costs and takes."""

from __future__ import annotations

from typing import Any

from diffusion.samplers import SAMPLERS


def list_samplers() -> dict[str, Any]:
    """The report of `--list-samplers`."""
    named = {name: ", ".join(f"--{each.replace('_', '-')}" for each in SAMPLERS[name].options) for name in SAMPLERS}
    width = max(map(len, named.values()))
    lines = [f"{'sampler':14}{'order':>5}  {'keeps':>5}  {'noise':5}  {'options':{width}}  what it is"]
    for method in SAMPLERS.values():
        noise = "yes" if method.stochastic else "no"
        options = named[method.name]
        lines.append(
            f"{method.name:14}{method.order:5}  {method.histories:5}  {noise:5}  {options:{width}}  {method.summary}"
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
