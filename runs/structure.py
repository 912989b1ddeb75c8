"""Count what makes the package hard to read: long files, private helpers, wide signatures, scattered knowledge.

    python runs/structure.py [PACKAGE_FOLDER] [--json]

Every row is a count over `src/longwave`; smaller is better. Compare two commits by running it on two checkouts.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from pathlib import Path
from statistics import median

LONG, WIDE = 250, 6
# A walk that looks for what `extend` put on, or a function that did so before there was a handle.
WALKS = re.compile(
    r"\b(rotaries_of|rotaries|trajectories_of|log_n_of)\(|isinstance\(\w+, (ScaledRotary|Trajectory|_LogN)\)"
)
# A file by which a folder is told from another kind of folder.
KINDS = re.compile(
    r"longwave\.json|longwave\.safetensors|longwave-export\.json|adapter_config\.json|\"config\.json\""
    r"|EXPORT_RECORD\b|\bSETTINGS\)|is_legacy\("
)
NO_USE = ("#", "def ", "from ", "import ")  # lines that begin so name a thing without using it


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [item.arg for item in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def measure(package: Path) -> dict[str, float]:
    texts = {path: path.read_text("utf-8") for path in sorted(package.rglob("*.py"))}
    found = {path: functions(ast.parse(text)) for path, text in texts.items()}
    every = [node for nodes in found.values() for node in nodes]
    lines = {path: text.count("\n") for path, text in texts.items()}

    def places(pattern: re.Pattern[str]) -> int:
        code = (line for text in texts.values() for line in text.splitlines())
        return sum(1 for line in code if pattern.search(line) and not line.lstrip().startswith(NO_USE))

    commands = [path for path in texts if "cli" in path.relative_to(package).parts]
    wide = {path: sum(1 for node in nodes if parameters(node) > WIDE) for path, nodes in found.items()}
    private = [node for node in every if node.name.startswith("_") and not node.name.startswith("__")]
    return {
        "files": len(texts),
        "lines": sum(lines.values()),
        "median lines of a file": median(lines.values()),
        f"files over {LONG} lines": sum(1 for count in lines.values() if count > LONG),
        "private functions": len(private),
        f"functions with more than {WIDE} parameters": sum(wide.values()),
        "the same, commands left out": sum(count for path, count in wide.items() if path not in commands),
        "places that look for what extend put on": places(WALKS),
        "files that look for what extend put on": sum(1 for text in texts.values() if WALKS.search(text)),
        "places that know a folder's kind": places(KINDS),
        "files that know a folder's kind": sum(1 for text in texts.values() if KINDS.search(text)),
        "lines in cli/": sum(lines[path] for path in commands),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, default=Path(__file__).parent.parent / "src" / "longwave")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.package)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, count in found.items():
        print(f"{count:>8g}  {name}")


if __name__ == "__main__":
    main()
