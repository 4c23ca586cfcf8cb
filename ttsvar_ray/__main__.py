"""`python -m ttsvar_ray`."""

from __future__ import annotations

from ttsvar_ray.cli import main

if __name__ == "__main__":
    main()
