"""The command list."""

from __future__ import annotations

from steadyseg import console


def list_names(*, costs: bool = False) -> None:
    """List methods, backbones, data, weights and configs.

    Args:
        costs: instead of the scores that were published for each config, show its parameters and multiply-adds, as
            published and as counted here.
    """
    from steadyseg import backbones, config, data, models
    from steadyseg.engine import checkpoint

    shipped = []
    for name in checkpoint.names():
        model = checkpoint.load_model(name)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        shipped.append(f"{name} ({millions:.2f} M parameters, {model.num_classes} classes)")
    console.line(f"methods    {', '.join(models.names())}")
    console.line(f"backbones  {', '.join(backbones.names())}")
    console.line(f"data       {', '.join(data.names())}")
    for number, text in enumerate(shipped):
        console.line(f"{'' if number else 'weights':<11}{text}")
    console.line("")
    experiments = [(name, config.load(name)) for name in config.names()]
    if costs:
        console.costs(experiments, config.costs())
    else:
        console.configs(experiments)
