"""Which environment do the programs that are called here get?  One that this project chose."""

from collections.abc import Mapping

DROPPED = ("PET_", "TORCHELASTIC_", "SQUEUE_", "GIT_")  # beginnings of names


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings that configure the called programs from outside."""
    return {name: value for name, value in environ.items() if not name.startswith(DROPPED)}
