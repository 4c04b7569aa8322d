"""The kernelspecs of this machine, as Jupyter's REST API shows them.

A kernelspec of which a caller may not start kernels does not exist for that caller.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from relay.auth.policy import Action, Rights
from relay.errors import NotFound

_USUAL_DEFAULT: Final = "python3"


class KernelSpecs:
    """Finds kernelspecs; ``prefix`` is the path under which clients fetch their resources."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._manager = KernelSpecManager()

    async def all(self, rights: Rights) -> dict[str, Any]:
        """Return ``{"default": name, "kernelspecs": {name: model}}``.

        Raises:
            NotFound: there is none. JupyterLab takes an empty list for an error too, but does not
                show what is wrong.
        """
        found = await asyncio.to_thread(self._manager.get_all_specs)
        models = {
            name: self._model(name, item)
            for name, item in found.items()
            if rights.allows(Action.START, name)
        }
        return {"default": _default(list(models)), "kernelspecs": models}

    async def get(self, name: str, rights: Rights) -> dict[str, Any]:
        """Return one kernelspec's model, under its own name. Raises `NotFound`.

        As everywhere in Jupyter, upper and lower case are the same.
        """
        found = await asyncio.to_thread(self._manager.get_all_specs)
        own = name.lower()
        if own not in found or not rights.allows(Action.START, own):
            msg = f"There is no kernelspec named {name!r}."
            raise NotFound(msg)
        return self._model(own, found[own])

    async def default(self, rights: Rights) -> str:
        """Return the default kernelspec's name. Raises `NotFound` where there is no kernelspec."""
        found = await asyncio.to_thread(self._manager.find_kernel_specs)
        return _default([name for name in found if rights.allows(Action.START, name)])

    async def resource(self, name: str, file: tuple[str, ...], rights: Rights) -> Path:
        """Return the path of a kernelspec's file, such as its logo. Raises `NotFound`."""
        msg = "There is no such kernelspec resource."
        if not rights.allows(Action.START, name.lower()):
            raise NotFound(msg)
        try:
            spec = await asyncio.to_thread(self._manager.get_kernel_spec, name)
        except (NoSuchKernel, ValueError) as error:
            raise NotFound(msg) from error
        root = Path(spec.resource_dir).resolve()
        try:
            path = root.joinpath(*file).resolve()
            # What a link inside the folder points to may lie outside of it.
            found = path.is_relative_to(root) and path.is_file()
        except (OSError, RuntimeError, ValueError) as error:
            # A name that is too long, a link to itself, a NUL.
            raise NotFound(msg) from error
        if not found:
            raise NotFound(msg)
        return path

    def _model(self, name: str, item: dict[str, Any]) -> dict[str, Any]:
        folder = Path(item["resource_dir"])
        resources = {}
        for file in ("kernel.js", "kernel.css"):
            if (folder / file).is_file():
                resources[file] = self._url(name, file)
        for logo in sorted(folder.glob("logo-*")):
            resources[logo.stem] = self._url(name, logo.name)
        return {"name": name, "spec": item["spec"], "resources": resources}

    def _url(self, name: str, file: str) -> str:
        return f"{self._prefix}/kernelspecs/{name}/{file}"


def _default(names: list[str]) -> str:
    """Return the default among ``names``. Raises `NotFound` where there are none."""
    if not names:
        raise NotFound("This cluster has no kernelspecs of which you may start kernels.")
    return _USUAL_DEFAULT if _USUAL_DEFAULT in names else min(names)
