"""The maker of this machine's processor: matrix products of one maker's are summed in another order on another's."""

from __future__ import annotations

import platform
import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def read_cpu_vendor() -> str:
    """Return what Linux calls it, such as GenuineIntel; elsewhere the processor's name, or nothing."""
    found = re.search(r"vendor_id\s*:\s*(\S+)", CPU_INFO.read_text()) if CPU_INFO.exists() else None
    return found[1] if found else platform.processor()
