"""Why the CPU answers although a device was asked for, in words for `explain`, `stats` and the log."""

from __future__ import annotations

from typing import Protocol

from ..types import LISTS_ONLY
from .device_main import DeviceMain
from .main import Main, copied
from .on_device import OnDevice
from .served import Served

SMALL = "rows x dimension is at most exact_max_scalars"
NO_QUERY = "there was nothing to search for"


class Seen(Protocol):
    """What is asked of the view that the CPU answers from."""

    dimension: int
    n_live: int
    main: Main | None
    served: Served | None
    device_main: DeviceMain | None


class Reasons:
    """Of one index, for which devices were asked; any thread may ask. Starts no device.

    `kind` and `quantization` are those that the index was made with.
    """

    def __init__(self, on_device: OnDevice, kind: str, quantization: str) -> None:
        self._on_device = on_device
        self._kind = kind
        self._quantization = quantization
        self._unfit_index: object = None
        """Of the main index that was found to fit no device, and need not be looked at again."""

    def of_answer(self, view: Seen) -> str:
        """Why the CPU gave an answer for which nobody gave a reason of its own."""
        there = view.served if copied(view.main) is None else view.device_main
        if there is None or not there.there:
            return self.of_serving(view)
        return f"no row that may answer lies on {there.names or self._names}"

    def of_serving(self, view: Seen) -> str:
        """Why what serves lies on no device."""
        on_device, placements, names = self._on_device, self._on_device.placements, self._names
        if placements.started and not placements.among(on_device.names):
            return f"{names} {'is' if len(on_device.names) == 1 else 'are'} not up"
        if unfit := self._unfit(view):
            return unfit
        main = copied(view.main)
        if self._is_small(view):
            return SMALL
        if main is None:
            if self._kind not in ("exact", "auto") or self._quantization in LISTS_ONLY:
                return "there is no index yet"
            if self._kind == "auto" and on_device.too_busy:
                return f"exact search keeps {names} too busy, and there is no index yet"
        if on_device.failed:
            return f"placing on {names} failed: {on_device.failed}"
        again = view.served is not None or view.device_main is not None
        return f"not placed on {names} {'again ' if again else ''}yet"

    def unheard(self, view: Seen) -> str:
        """Why no device can take what serves, the first time that it is so; else empty. Costs a few comparisons."""
        there = view.served if copied(view.main) is None else view.device_main
        placements = self._on_device.placements
        if there is not None or not placements.started:
            return ""
        if not placements.among(self._on_device.names):
            return ""
        main = copied(view.main)
        if main is not None and main.index is self._unfit_index:
            return ""
        unfit = self._unfit(view)
        if unfit and main is not None:
            self._unfit_index = main.index
        return unfit if unfit and self._on_device.is_news(unfit) else ""

    @property
    def _names(self) -> str:
        return ", ".join(self._on_device.names)

    def _is_small(self, view: Seen) -> bool:
        main = copied(view.main)
        rows = view.n_live if main is None else main.n
        return not self._on_device.is_large(rows)

    def _unfit(self, view: Seen) -> str:
        """What no device can hold or search, whatever becomes of it; needs devices that have been started."""
        on_device, main = self._on_device, copied(view.main)
        if main is not None:
            what = on_device.cannot(main) if on_device.placements.started else ""
            return f"{self._names} cannot search {what}" if what else ""
        if on_device.is_binary:
            return f"{self._names} cannot search bits"
        if self._kind not in ("exact", "auto") or self._is_small(view):
            return ""
        if on_device.takes("exact", view.n_live):
            return ""
        return f"{on_device.least_bytes(view.n_live):,} bytes do not fit {self._names}"
