"""`ttsvar-ray doctor`: what of this machine is ready."""

from ttsvar_ray.cli.doctor.command import doctor

__all__ = ["doctor"]
