"""What `promtool check metrics` asks of a page, checked by promtool where there is one and by its main rules always."""

from __future__ import annotations

import re
import shutil
import subprocess

from prometheus_client.parser import text_string_to_metric_families

_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_UNITS = re.compile(r"_(ms|milliseconds|minutes|hours|kb|mb|kib|mib|percent)(_|$)")


def check_metrics(page: str) -> None:
    """Raises `AssertionError` for a page that Prometheus's own tool would find fault with."""
    promtool = shutil.which("promtool")
    if promtool is not None:
        done = subprocess.run([promtool, "check", "metrics"], input=page, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
    families = list(text_string_to_metric_families(page))
    names = [line.split(" ")[2] for line in page.splitlines() if line.startswith("# TYPE ")]
    assert len(names) == len(set(names)), "a family comes twice"
    assert page.endswith("\n")
    seen = set()
    for family in families:
        assert family.documentation, f"{family.name} has no help text"
        assert family.type != "unknown", f"{family.name} has no type"
        for sample in family.samples:
            assert _NAME.fullmatch(sample.name), sample.name
            assert not _UNITS.search(sample.name), f"{sample.name} is not in base units"
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in seen, f"{key} comes twice"
            seen.add(key)
