"""The command list."""

from __future__ import annotations

from steadyseg import console


def list_names() -> None:
    """List methods, backbones, weights, and configs: what was published, and what we count for the same row."""
    from steadyseg import backbones, config, data, models
    from steadyseg.engine import checkpoint

    shipped = []
    for name in checkpoint.names():
        model = checkpoint.load_model(name)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        shipped.append(f"{name} ({millions:.2f} M parameters, {model.num_classes} classes)")
    table = console.table("kind", "names")
    for kind, names in {
        "methods": models.names(),
        "backbones": backbones.names(),
        "data": data.names(),
        "weights": shipped,
    }.items():
        table.add_row(kind, ", ".join(names))
    console.out.print(table)
    console.line("")
    console.configs([(name, config.load(name)) for name in config.names()], config.costs())
