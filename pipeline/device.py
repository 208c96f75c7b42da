"""Names of devices, as ``--device`` takes them."""

from __future__ import annotations

from dptr.cache.errors import UserError


def resolve_device(name: str) -> str:
    """Return the torch device of a name: ``cuda`` or ``cpu`` for ``auto``, any other as it is.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # The meta device stores no values, so reading one back proves that the device is usable.
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name} is not usable here", "Use cpu, or auto") from error
    return name
