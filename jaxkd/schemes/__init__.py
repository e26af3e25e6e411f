"""Schemes: who teaches whom, and when. Each returns the same `Distiller` that `jaxkd.distill` does.

=============================  =============================================================================
`jaxkd.distill`                offline: a trained, frozen teacher
`jaxkd.schemes.staged`         one objective after another: initialise on a feature, then train on the task
`jaxkd.schemes.relay`          one distillation after another, each with what the earlier ones trained
`jaxkd.schemes.knowledge_flow` teachers' layers mixed into the student until it runs alone: `knowledge_flow`,
                               `dependence_loss`, `report_dependence`
`jaxkd.schemes.few_sample`     least squares for each layer, folded into the student (FSKD): `few_sample`,
                               `FewSampleLayer`
`jaxkd.schemes.assistants`     a chain of networks between teacher and student (TAKD): `assistants`, `chains`,
                               `best_chain`
`jaxkd.schemes.born_again`     generations of one architecture, each taught by the one before, and their ensemble
=============================  =============================================================================
"""

from jaxkd.schemes.assistants import assistants, best_chain, chains
from jaxkd.schemes.born_again import born_again
from jaxkd.schemes.few_sample import FewSampleLayer, few_sample
from jaxkd.schemes.knowledge_flow import dependence_loss, knowledge_flow, report_dependence
from jaxkd.schemes.relay import Leg, handed, relay
from jaxkd.schemes.staged import Stage, staged

__all__ = [
    "FewSampleLayer",
    "Leg",
    "Stage",
    "assistants",
    "best_chain",
    "born_again",
    "chains",
    "dependence_loss",
    "few_sample",
    "handed",
    "knowledge_flow",
    "relay",
    "report_dependence",
    "staged",
]
