"""Kernels that have ended: their folders may be there for another moment."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from relay.auth.ownership import KernelOwnership
from relay.errors import NotFound

_REASONS: Final = 1024
"""Kernels whose reasons are kept."""


class EndedKernels:
    """The ids of kernels that have ended, as far as this agent knows, and why some did."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._reasons: OrderedDict[str, tuple[KernelOwnership, str]] = OrderedDict()

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self._ids

    def add(self, kernel_id: str) -> None:
        """Note a kernel's end."""
        self._ids.add(kernel_id)

    def discard(self, kernel_id: str) -> None:
        """Take a note back: the kernel may run."""
        self._ids.discard(kernel_id)

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel's end, and its reason: another one gets the id."""
        self._ids.discard(kernel_id)
        self._reasons.pop(kernel_id, None)

    def keep(self, kernel_ids: Iterable[str]) -> None:
        """Forget the ids of kernels whose folders are gone too: ``kernel_ids`` have one."""
        self._ids.intersection_update(kernel_ids)

    def explain(self, kernel_id: str, kernel: KernelOwnership, reason: str) -> None:
        """Note why a kernel was ended against its user's will."""
        self._reasons[kernel_id] = kernel, reason
        if len(self._reasons) > _REASONS:
            self._reasons.popitem(last=False)

    def ownership(self, kernel_id: str) -> KernelOwnership | None:
        """Return the ownership of a kernel that was ended against its user's will."""
        kernel, _ = self._reasons.get(kernel_id, (None, ""))
        return kernel

    def raise_reason(self, kernel_id: str) -> None:
        """Raise `NotFound` with the reason of a kernel's end, where there is one to tell."""
        if kernel_id in self._reasons:
            _, reason = self._reasons[kernel_id]
            raise NotFound(reason)
