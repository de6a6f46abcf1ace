"""What holds for tests and doctests alike: keys are made in a folder of their own, never in that of the user."""

from __future__ import annotations

import os
import tempfile

_KEPT = tempfile.TemporaryDirectory(prefix="bolus-tests-")
os.environ["XDG_CONFIG_HOME"] = _KEPT.name
os.environ.pop("BOLUS_KEY", None)
