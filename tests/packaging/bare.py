"""Runs the README's first loss where nothing but jaxkd is installed: ``python tests/packaging/bare.py README.md``."""

import pathlib
import re
import sys


def first_loss(readme: str) -> str:
    """Returns the first block of Python that calls a loss by itself."""
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if "from jaxkd import losses" in block and "import jaxkd\n" not in block)


if __name__ == "__main__":
    names: dict[str, object] = {}
    exec(first_loss(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")), names)
    import jaxkd

    value = float(names["loss"])  # type: ignore[arg-type]
    assert 0 <= value < float("inf"), value
    assert not {"pytest", "matplotlib", "tyro"} & sys.modules.keys()
    print(f"jaxkd {jaxkd.__version__} from {pathlib.Path(jaxkd.__file__).parent}: loss {value:.4f}")
