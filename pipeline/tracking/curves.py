"""The names of the curves that every tracker shows of growth."""

from __future__ import annotations

__all__ = ["growth_curves"]


def growth_curves(
    parameters: int,
    macs: int,
    predicted: float | None = None,
    realised: float | None = None,
    epsilon: float | None = None,
) -> dict[str, float]:
    """A point of every curve; what is None has no point.

    Args:
        parameters: of the network.
        macs: multiply-accumulates per sample.
        predicted: the predicted change of the loss by the split that made it, below 0 if it is better.
        realised: the realised change of the loss, likewise.
        epsilon: the step ε of that split.
    """
    curves = {
        "parameters": float(parameters),
        "macs": float(macs),
        "predicted_decrease": None if predicted is None else -predicted,
        "realised_decrease": None if realised is None else -realised,
        "epsilon": epsilon,
    }
    return {f"growth/{name}": value for name, value in curves.items() if value is not None}
