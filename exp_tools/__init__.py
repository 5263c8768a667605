"""The library; what other code uses of it is named here and loaded, with torch, when it is first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exp_tools.serving.predictor import Patient, Predictor

__all__ = ["Patient", "Predictor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from exp_tools.serving import predictor

    return getattr(predictor, name)
