"""Notebooks from their sources: ``python docs/notebooks/build.py [NAME ...]`` executes them and writes the .ipynb.

A source is a Python file whose cells begin with ``# %%``, or ``# %% [markdown]`` for text, as editors and jupytext read
it. Reviews and edits are of the source; the notebook beside it has the outputs. ``--out FOLDER`` writes elsewhere.
Needs nbformat, nbclient and ipykernel.
"""

import argparse
import os
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
CELL = re.compile(r"^# %%(?P<text> \[markdown\])?\n", re.MULTILINE)


def cells(source: str) -> list[tuple[str, str]]:
    """Returns the cells of a source: ``"markdown"`` or ``"code"``, and the content.

    >>> cells("# %% [markdown]\\n# # A title\\n#\\n# A text.\\n\\n# %%\\nx = 1\\n")
    [('markdown', '# A title\\n\\nA text.'), ('code', 'x = 1')]
    """
    found = []
    marks = list(CELL.finditer(source))
    for mark, end in zip(marks, [*(one.start() for one in marks[1:]), len(source)], strict=True):
        content = source[mark.end() : end].strip("\n")
        if mark["text"]:
            found.append(("markdown", re.sub(r"^# ?", "", content, flags=re.MULTILINE)))
        else:
            found.append(("code", content))
    return found


def sources() -> list[pathlib.Path]:
    """Returns the sources of the notebooks."""
    return sorted(path for path in FOLDER.glob("*.py") if path.name != "build.py")


def execute(source: pathlib.Path, target: pathlib.Path) -> None:
    """Executes a notebook from its source and writes it with its outputs."""
    import nbclient
    import nbformat

    made = [
        getattr(nbformat.v4, f"new_{kind}_cell")(content, id=f"cell-{number}")
        for number, (kind, content) in enumerate(cells(source.read_text(encoding="utf-8")))
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=made, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute(cwd=str(target.parent))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of day
    nbformat.write(notebook, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks to make; all by default")
    parser.add_argument("--out", type=pathlib.Path, default=FOLDER, help="folder of the notebooks")
    arguments = parser.parse_args()
    root = str(FOLDER.parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    for source in sources():
        if not arguments.names or source.stem in arguments.names:
            execute(source, arguments.out / f"{source.stem}.ipynb")
            print(arguments.out / f"{source.stem}.ipynb", file=sys.stderr)


if __name__ == "__main__":
    main()
