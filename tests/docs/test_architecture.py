"""The map is the land: what the architecture page says about the tree is so."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
SOURCE = REPOSITORY / "src" / "llambo"


def test_the_package_table_is_the_tree() -> None:
    named = set(re.findall(r"^\| `(llambo[\w.]*)` \|", PAGE, re.MULTILINE))
    packages = {
        ".".join(("llambo", *path.parent.relative_to(SOURCE).parts))
        for path in SOURCE.rglob("*")
        if path.name == "__init__.py" or path.suffix == ".gguf"
    }
    assert named == packages - {"llambo"}


def test_every_module_that_the_page_names_exists() -> None:
    for name in re.findall(r"`((?:core|engine|node|cluster|bridge|limbot|cli)/[\w/]+)(?:\.\w+)?`", PAGE):
        assert (SOURCE / f"{name}.py").exists(), name


def test_every_decision_has_a_number_of_its_own() -> None:
    numbers = [path.name.split("-")[0] for path in sorted((REPOSITORY / "docs" / "decisions").glob("*.md"))]
    assert numbers == [f"{n:04}" for n in range(1, len(numbers) + 1)]


def test_links_between_pages_lead_somewhere() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
