"""Operations of a traced program, including those inside of loops and of called functions."""

import jax


def operations(jaxpr, *, loops=True):
    """Yields all equations of a jaxpr, depth first; ``loops=False`` skips the bodies of loops."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        if not loops and equation.primitive.name in ("scan", "while"):
            continue
        for value in jax.tree.leaves(dict(equation.params), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from operations(value, loops=loops)


def products(jaxpr, **options):
    """Returns operand dtypes and result shape of each matrix product and convolution, sorted."""
    found = (e for e in operations(jaxpr, **options) if e.primitive.name in ("dot_general", "conv_general_dilated"))
    return sorted((*(str(v.aval.dtype) for v in e.invars[:2]), e.outvars[0].aval.shape) for e in found)


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
