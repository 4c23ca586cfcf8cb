"""TTS-VAR (arXiv 2507.18537) as a distributed, resumable job, and in one process.

    from ttsvar_ray import generate
    results = generate(["a red circle above a blue ring"], model="shapes", n=2)
    results[0].image

Names are imported when they are first used, so that the commands start without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttsvar_ray.api.results import FoundImage, Result
    from ttsvar_ray.api.saved import SavedRun, load
    from ttsvar_ray.api.search import Search, generate
    from ttsvar_ray.api.tree import SearchTree

    __version__: str

__all__ = ["FoundImage", "Result", "SavedRun", "Search", "SearchTree", "__version__", "generate", "load"]

_HOMES = {
    "FoundImage": "ttsvar_ray.api.results",
    "Result": "ttsvar_ray.api.results",
    "SavedRun": "ttsvar_ray.api.saved",
    "Search": "ttsvar_ray.api.search",
    "SearchTree": "ttsvar_ray.api.tree",
    "generate": "ttsvar_ray.api.search",
    "load": "ttsvar_ray.api.saved",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        import importlib.metadata

        return importlib.metadata.version("ttsvar-ray")
    if name not in _HOMES:
        raise AttributeError(f"module 'ttsvar_ray' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
