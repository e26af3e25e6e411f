"""What a traced program computes: its operations, those inside of loops and of other functions too."""

import jax


def operations(jaxpr, *, loops=True):
    """All equations of a jaxpr, depth first; without ``loops`` not those of the bodies of loops."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        if not loops and equation.primitive.name in ("scan", "while"):
            continue
        for value in jax.tree.leaves(dict(equation.params), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from operations(value, loops=loops)


def products(jaxpr, **options):
    """The operands' dtypes and the result's shape of each matrix product and convolution, sorted."""
    found = (e for e in operations(jaxpr, **options) if e.primitive.name in ("dot_general", "conv_general_dilated"))
    return sorted((*(str(v.aval.dtype) for v in e.invars[:2]), e.outvars[0].aval.shape) for e in found)


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
