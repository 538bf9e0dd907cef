"""Draw which parts of Stepladder import which, and check that arrows only point down.

import_graph.py --check     fail where ARCHITECTURE.md differs from the code, a layer is broken or a cycle exists
import_graph.py --write     redraw the picture in ARCHITECTURE.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- import graph: begin (make fix) -->", "<!-- import graph: end -->"
PACKAGE = "stepladder"

# From the top down. A part may import what stands in a lower row; siblings of one row may not import each other,
# but for those joined by "→", where the left may import the right.
LAYERS: dict[str, tuple[str, ...]] = {
    "surfaces": ("__main__", "cli", "gateway", "dashboard", "testing"),
    "wiring": ("sync", "build", "config", "plugins"),
    "study": ("reproduce", "train", "evaluate"),
    "heart": ("router",),
    "parts": ("features", "predictors", "policies", "costs", "engines", "guard", "traces"),
    "speculation": ("decoding",),
    "words": ("contracts", "held", "tokens", "types", "errors", "files", "hub", "patience", "version"),
}
WITHIN = {
    ("__main__", "cli"),  # python -m stepladder
    ("cli", "gateway"),  # serve and demo start it
    ("build", "sync"),  # load() hands out the wrapper, which knows only the router
    ("build", "config"),
    ("build", "plugins"),
    ("reproduce", "train"),  # the paper's experiment fits its predictors
    ("reproduce", "evaluate"),
    ("train", "evaluate"),
    ("contracts", "types"),
    ("errors", "types"),
    ("tokens", "types"),
    ("held", "types"),
    ("held", "tokens"),
    ("hub", "errors"),
}


def unit(module: str) -> str | None:
    """First-level name of a module; None for the package's root."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def edges(graph: grimp.ImportGraph) -> set[tuple[str, str]]:
    """Imports between first-level parts."""
    found: set[tuple[str, str]] = set()
    for module in graph.modules:
        for target in graph.find_modules_directly_imported_by(module):
            pair = (unit(module), unit(target))
            if pair[0] and pair[1] and pair[0] != pair[1]:
                found.add((pair[0], pair[1]))
    return found


def layer_of(name: str) -> int:
    """Row of a part, counted from the top; raises SystemExit for one that has no row yet."""
    for row, names in enumerate(LAYERS.values()):
        if name in names:
            return row
    sys.exit(f"tools/import_graph.py: '{name}' stands in no layer; add it to LAYERS")


def wrong(found: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence for each arrow that does not point down."""
    return [
        f"{source} imports {target}: arrows point down only; perhaps the missing thing is a word in types.py"
        for source, target in sorted(found)
        if layer_of(source) >= layer_of(target) and (source, target) not in WITHIN
    ]


def cycle(graph: grimp.ImportGraph) -> list[str]:
    """One cycle of modules, or nothing. The package's root is left out: it only re-exports, lazily."""
    modules = {m: graph.find_modules_directly_imported_by(m) - {PACKAGE} for m in graph.modules if m != PACKAGE}
    try:
        tuple(TopologicalSorter(modules).static_order())
    except CycleError as error:
        return [str(name) for name in error.args[1]]
    return []


def picture(found: set[tuple[str, str]]) -> str:
    """The graph as a Mermaid flowchart; words are left out of the arrows, since everything may import them."""
    present = {name for pair in found for name in pair}
    lines = ["```mermaid", "flowchart TD"]
    for layer, names in LAYERS.items():
        here = [name for name in names if name in present]
        if here:
            lines += [f"  subgraph {layer}", *(f"    {name}" for name in here), "  end"]
    lines += [f"  {a} --> {b}" for a, b in sorted(found) if b not in LAYERS["words"]]
    return "\n".join([*lines, "  parts --> words", "```"])


def replaced(page: str, drawing: str) -> str:
    """The page with the drawing between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{PAGE.name} lacks the marks '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n{drawing}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true")
    action.add_argument("--write", action="store_true")
    args = parser.parse_args()
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    found = edges(graph)
    page = PAGE.read_text("utf-8")
    drawn = replaced(page, picture(found))
    if args.write:
        PAGE.write_text(drawn, "utf-8")
        return 0
    complaints = wrong(found)
    if circle := cycle(graph):
        complaints.append("import cycle: " + " → ".join(circle))
    if drawn != page:
        complaints.append(f"the picture in {PAGE.name} is not what the code does; run make fix")
    for complaint in complaints:
        sys.stdout.write(complaint + "\n")
    if not complaints:
        sys.stdout.write(f"import graph: {len(graph.modules)} modules, {len(found)} arrows, all down, no cycle\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
